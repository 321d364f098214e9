"""A built library as a torch operator: checks against the manifest, then one native call.

An Operator may be called from several threads at once: every thread has workspaces of its own. A
State belongs to one caller at a time. After a fork, the child runs on one thread, for the parent's
OpenMP threads do not exist there; start workers with `spawn` to have more.
"""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphdsl.backend import find_backend
from graphdsl.build import LIBRARY, MANIFEST, is_whole
from graphdsl.errors import GraphError
from graphdsl.ir import FLOATS, Layout
from graphdsl.lazy import torch, torch_dtype
from graphdsl.manifest import FORMAT, Json
from graphdsl.recipes import recipe_inputs, run_recipe

if TYPE_CHECKING:
    from torch import Tensor

    from graphdsl.runtime._native import Library, Plan

PLANS_A_THREAD = 8
"""Plans (with their workspaces) that a thread keeps; the one unused longest goes first."""

State = dict[str, "Tensor"]
"""KV caches by name, in the physical axis order of the manifest; changed in place by a call."""


@dataclass
class _Bound:
    """A plan, its workspace, and the addresses of the weights it was made for."""

    plan: Plan
    workspace: Tensor
    weights: tuple[int, ...]


@dataclass
class _ThreadPlans(threading.local):
    plans: OrderedDict[tuple[Any, ...], _Bound] = field(default_factory=OrderedDict)


class Operator:
    """What `graphdsl.load` and `graphdsl.build` give."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_manifest(path)
        self.name = str(self.manifest["name"])
        self._library = _open(path, self.manifest)
        self._dims = [d["name"] for d in self.manifest["dims"]]
        self._weights: list[Tensor] | None = None
        self._plans = _ThreadPlans()
        self._owner = os.getpid()

    def __repr__(self) -> str:
        return f"Operator({self.name!r}, backend={self.manifest['backend']!r})"

    def bind(self, state_dict: Mapping[str, Tensor]) -> Operator:
        """Takes the weights: folds, converts and packs them once.

        Raises GraphError for a weight that is missing, unknown, or of another shape.
        """
        self._weights = self.pack_weights(state_dict)
        self._plans = _ThreadPlans()
        return self

    @property
    def weights(self) -> list[Tensor]:
        """The packed weights, as `torch.ops.graphdsl.<name>` takes them."""
        if self._weights is None:
            raise GraphError(f"{self.name}: no weights are bound",
                             hint="call operator.bind(state_dict) first")
        return self._weights

    def pack_weights(self, state_dict: Mapping[str, Tensor]) -> list[Tensor]:
        """The params of the library, in its order and format."""
        self._check_weights(state_dict)
        declared = {w["name"]: w for w in self.manifest["weights"]}
        packed = []
        for index, param in enumerate(self.manifest["params"]):
            dtype = torch_dtype(param["dtype"])
            if "recipe" in param:
                read = {n: state_dict[n].to(torch_dtype(declared[n]["dtype"]))
                        for n in sorted(recipe_inputs(param["recipe"]))}
                tensor = run_recipe(param["recipe"], read)
            else:
                tensor = state_dict[param["name"]]
            tensor = tensor.detach().to(dtype).contiguous()
            packed.append(self._packed(index, tensor) if param["packed"] else tensor)
        return packed

    def _packed(self, index: int, tensor: Tensor) -> Tensor:
        target = torch.empty(self._library.packed_bytes(index), dtype=torch.uint8)
        self._library.pack(index, tensor.data_ptr(), target.data_ptr())
        return target

    def _check_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        declared = {w["name"]: w for w in self.manifest["weights"]}
        missing = sorted(declared.keys() - state_dict.keys())
        extra = sorted(state_dict.keys() - declared.keys())
        if missing or extra:
            what = f"weight {missing[0]} is missing" if missing else f"no weight {extra[0]} is known"
            more = max(len(missing), len(extra)) - 1
            raise GraphError(f"{self.name}: {what}" + (f", and {more} more" if more else ""),
                             hint=f"weights: {_listed(declared)}")
        for name, weight in declared.items():
            found = state_dict[name]
            if list(found.shape) != weight["shape"]:
                raise GraphError(f"{self.name}: weight {name} is {list(found.shape)}, wanted "
                                 f"{weight['shape']}")
            if weight["dtype"] in FLOATS and not found.is_floating_point():
                raise GraphError(f"{self.name}: weight {name} is {found.dtype}, wanted a floating "
                                 "dtype", hint="quantised weights are not read here")

    def new_state(self, batch: int, slots: int) -> State:
        """Empty KV caches for `batch` sequences of up to `slots` tokens."""
        if batch < 1 or slots < 1:
            raise GraphError(f"{self.name}: a state of batch {batch} and {slots} slots",
                             hint="both are at least 1")
        dims = {"batch": batch, "slots": slots}
        return {s["name"]: torch.zeros(_physical(s, dims), dtype=torch_dtype(s["dtype"]))
                for s in self.manifest["state"]}

    def __call__(self, *inputs: Tensor, state: State | None = None) -> Any:
        """The results, one tensor or a tuple; `state` is changed in place.

        Raises GraphError, before native code runs, for a tensor of another rank, size, dtype or
        device, or with a gap between its rows, and for ids, positions or rows out of range.
        """
        tensors = list((state or {}).values())
        names = [s["name"] for s in self.manifest["state"]]
        if list(state or {}) != names:
            raise GraphError(f"{self.name}: state has {_listed(state or {})}, wanted "
                             f"{_listed(names)}", hint="operator.new_state(batch, slots) makes it")
        results = self.run(inputs, self.weights, tensors)
        return results[0] if len(results) == 1 else tuple(results)

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor],
            state: Sequence[Tensor]) -> list[Tensor]:
        """The results for tensors in the manifest's order; weights as `pack_weights` made them."""
        dims = self.check(inputs, state)
        outputs = [torch.empty([_size(s, dims) for s in o["shape"]], dtype=torch_dtype(o["dtype"]))
                   for o in self.manifest["outputs"]]
        bound = self._plan(dims, weights, inputs, state, outputs)
        at = len(inputs) + len(state)
        bindings = [(i, t.data_ptr()) for i, t in enumerate((*inputs, *state))]
        addresses = tuple(t.data_ptr() for t in weights)
        if addresses != bound.weights:
            bindings += [(at + i, a) for i, a in enumerate(addresses)]
            bound.weights = addresses
        at += len(weights)
        bindings += [(at + i, t.data_ptr()) for i, t in enumerate(outputs)]
        bound.plan.step(bindings)
        return outputs

    def check(self, inputs: Sequence[Tensor], state: Sequence[Tensor]) -> dict[str, int]:
        """The dims that these tensors bind. Raises GraphError where they do not fit."""
        wanted = self.manifest["inputs"]
        if len(inputs) != len(wanted):
            raise GraphError(f"{self.name}: {len(inputs)} inputs given, {len(wanted)} wanted",
                             hint=f"inputs: {_listed(w['name'] for w in wanted)}")
        dims: dict[str, int] = {}
        for tensor, port in zip(inputs, wanted, strict=True):
            self._check_tensor(tensor, port, port["shape"], dims)
        for tensor, port in zip(state, self.manifest["state"], strict=True):
            self._check_tensor(tensor, port, physical_sizes(port), dims)
        for dim in self.manifest["dims"]:
            name, found = dim["name"], dims.setdefault(dim["name"], dim["lo"])
            if not dim["lo"] <= found <= dim["hi"]:
                raise GraphError(f"{self.name}: {name} is {found}, wanted {dim['lo']} to "
                                 f"{dim['hi']}")
        for tensor, port in zip(inputs, wanted, strict=True):
            if "range" in port:
                self._check_range(tensor, port, dims)
        return dims

    def _check_tensor(self, tensor: Tensor, port: Json, shape: Sequence[Any],
                      dims: dict[str, int]) -> None:
        label = f"{self.name}: {port['name']}"
        if tensor.device.type != "cpu":
            raise GraphError(f"{label} is on {tensor.device}, wanted the CPU",
                             hint=f"{port['name']}.cpu()")
        if tensor.dtype != torch_dtype(port["dtype"]):
            raise GraphError(f"{label} is {tensor.dtype}, wanted {torch_dtype(port['dtype'])}")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise GraphError(f"{label} requires grad, and a built operator has no backward",
                             hint="call it under torch.no_grad() or torch.inference_mode()")
        if tensor.dim() != len(shape):
            raise GraphError(f"{label} has {tensor.dim()} dims {list(tensor.shape)}, wanted "
                             f"{_shape_text(shape)}")
        for size, found in zip(shape, tensor.shape, strict=True):
            if isinstance(size, int):
                expected = size
            elif list(size["dims"].values()) == [1] and size["const"] == 0:
                expected = dims.setdefault(next(iter(size["dims"])), found)
            else:
                expected = _size(size, dims)
            if found != expected:
                raise GraphError(f"{label} is {list(tensor.shape)}, wanted {_shape_text(shape)}: "
                                 f"{_size_text(size)} is {found}, but it has to be {expected}")
        if not tensor.is_contiguous():
            raise GraphError(f"{label} is not contiguous", hint=f"{port['name']}.contiguous()")

    def _check_range(self, tensor: Tensor, port: Json, dims: Mapping[str, int]) -> None:
        if tensor.numel() == 0:
            return
        low, high = (_size(s, dims) for s in port["range"])
        least, most = (int(x) for x in torch.aminmax(tensor))
        if least < low or most >= high:
            found = least if least < low else most
            raise GraphError(f"{self.name}: {port['name']} holds {found}, wanted {low} to "
                             f"{high - 1}", hint=_range_hint(port))

    def _plan(self, dims: Mapping[str, int], weights: Sequence[Tensor], inputs: Sequence[Tensor],
              state: Sequence[Tensor], outputs: Sequence[Tensor]) -> _Bound:
        threads = torch.get_num_threads() if os.getpid() == self._owner else 1
        key = (threads, *(dims[name] for name in self._dims))
        plans = self._plans.plans
        if key in plans:
            plans.move_to_end(key)
            return plans[key]
        from graphdsl.runtime._native import Plan

        sizes = [dims[name] for name in self._dims]
        workspace = torch.empty(self._library.workspace_bytes(sizes, threads) + 64,
                                dtype=torch.uint8)
        addresses = [t.data_ptr() for t in (*inputs, *state, *weights, *outputs)]
        plan = Plan(self._library, addresses, sizes, threads, -(-workspace.data_ptr() // 64) * 64)
        plans[key] = _Bound(plan, workspace, tuple(t.data_ptr() for t in weights))
        if len(plans) > PLANS_A_THREAD:
            plans.popitem(last=False)
        return plans[key]

    def workspace(self, **dims: int) -> tuple[int, int]:
        """Bytes of workspace for these dims, and the lower bound of any placement."""
        sizes = [dims[name] for name in self._dims]
        threads = torch.get_num_threads()
        return (self._library.workspace_bytes(sizes, threads),
                self._library.workspace_lower_bound(sizes, threads))


def load(path: str | Path) -> Operator:
    """The operator that was built into this folder.

    Raises GraphError when the folder holds none, it is damaged, or this machine lacks what it was
    built for.
    """
    return Operator(Path(path))


def read_manifest(path: Path) -> Json:
    """The manifest of a build. Raises GraphError where there is none that this version reads."""
    file = path / MANIFEST
    if not file.is_file():
        raise GraphError(f"{path} holds no build: there is no {MANIFEST}",
                         hint="give the folder that `graphdsl build` printed")
    try:
        manifest: Json = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise GraphError(f"{file} is damaged: {error}", hint="build it again") from None
    if manifest.get("format") != FORMAT:
        raise GraphError(f"{file} has format {manifest.get('format')}, wanted {FORMAT}",
                         hint="build it again with this version")
    return manifest


def _open(path: Path, manifest: Json) -> Library:
    if not is_whole(path):
        raise GraphError(f"{path}: the library is missing or damaged", hint="build it again")
    missing = find_backend(manifest["backend"]).missing(manifest["features"])
    if missing:
        raise GraphError(f"{path} was built for {', '.join(missing)}, which this machine lacks",
                         hint="build it again on this machine")
    # torch brings an OpenMP runtime; loaded first, it is the only one in the process.
    assert torch.get_num_threads()
    from graphdsl.runtime._native import Library

    return Library(str((path / LIBRARY).resolve()))


def physical_sizes(port: Json) -> list[Any]:
    """The sizes of an input or state as it lies in memory."""
    if "layout" not in port:
        return list(port["shape"])
    order = Layout(port["layout"]["order"]).permutation
    return [port["shape"][axis] for axis in order]


def physical(tensor: Tensor, port: Json, *, back: bool = False) -> Tensor:
    """A state of logical shape [batch, slots, kv_heads, dim] as it lies in memory, or `back`."""
    order = Layout(port["layout"]["order"]).permutation
    if back:
        order = tuple(order.index(axis) for axis in range(len(order)))
    return tensor.permute(order).contiguous()


def _physical(port: Json, dims: Mapping[str, int]) -> list[int]:
    return [_size(s, dims) for s in physical_sizes(port)]


def _size(size: Any, dims: Mapping[str, int]) -> int:
    if isinstance(size, int):
        return size
    return int(sum(k * dims[n] for n, k in size["dims"].items()) + size["const"])


def _size_text(size: Any) -> str:
    if isinstance(size, int):
        return str(size)
    parts = [n if k == 1 else f"{k}*{n}" for n, k in size["dims"].items()]
    return " + ".join(parts + ([str(size["const"])] if size["const"] else []))


def _shape_text(shape: Sequence[Any]) -> str:
    return f"[{', '.join(map(_size_text, shape))}]"


def _range_hint(port: Json) -> str:
    if "slots" in json.dumps(port["range"]):
        return "the cache is full: make a state with more slots; -1 marks padding"
    return "the highest is the size of what is indexed, less 1"


def _listed(names: Any, most: int = 8) -> str:
    items = list(names)
    return ", ".join(items[:most]) + (f", ... {len(items) - most} more" if len(items) > most else "")
