"""A built library as a torch operator: checks against the manifest, then one native call.

An Operator may be called from several threads at once: every thread has plans and a workspace of
its own, and other Python threads go on during a step. A State belongs to one caller at a time. A
call that is under way when weights are bound goes on with those it began with. Threads follow
`torch.set_num_threads`. After a fork the child runs on one thread, for the parent's OpenMP threads
do not exist there; start workers with `spawn`, to which an Operator can be sent, for more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphdsl.errors import GraphError
from graphdsl.layout import NZ_WIDTH
from graphdsl.lazy import torch
from graphdsl.runtime.device import HOST, claim, open_device
from graphdsl.runtime.dims import PlanDim, sources
from graphdsl.runtime.folder import library_checksum, library_path, open_library, read_manifest
from graphdsl.runtime.group import Group, check_group
from graphdsl.runtime.pages import PageCheck
from graphdsl.runtime.plans import BoundPlan, ThreadPlans, stepped, threads_now
from graphdsl.runtime.ports import Port, listed
from graphdsl.runtime.prepared import Prepared
from graphdsl.runtime.weights import Checked, WeightFormat

if TYPE_CHECKING:
    from torch import Tensor

    from graphdsl.quant import Quantised

Weights = Mapping[str, "Tensor | Quantised"]
"""Weights by name, as a state dict has them; some may be quantised."""
State = dict[str, "Tensor"]
"""KV caches by name, as the layouts of the manifest have them in memory, changed in place by a
call, and for paged ones the block table, which is the caller's own."""


class Operator:
    """What `graphdsl.load` and `graphdsl.build` give."""

    def __init__(self, path: Path, group: Group | None = None) -> None:
        self.path = path
        self.manifest = read_manifest(path)
        self.group = group
        check_group(path, self.manifest.get("group"), group)
        self.name = str(self.manifest["name"])
        self.checksum = library_checksum(path)
        self.library = library_path(path, self.checksum)
        self.device = open_device(self.name, self.manifest.get("device", HOST))
        self._native = open_library(path, self.library, self.manifest)
        self._away = self.device.away
        kind = self.device.type
        self.inputs = [Port.read(p, kind) for p in self.manifest["inputs"]]
        self.state = [Port.read(p, kind) for p in self.manifest["state"]]
        self.outputs = [Port.read(p, kind) for p in self.manifest["outputs"]]
        self.dims = [PlanDim.read(d) for d in self.manifest["dims"]]
        self._given_names = [p.name for p in self.inputs + self.state]
        self._state_names = [p.name for p in self.state]
        pages = [PageCheck.read(p, self._given_names) for p in self.manifest.get("paged", ())]
        on_host = [p.device == HOST for p in self.inputs + self.state]
        self.pages = [check for check in pages if check.reads(on_host)]
        self._sources = sources(self.dims, self.inputs + self.state)
        self._format = WeightFormat(self.name, self.manifest, self._native, self.device)
        self._weights: tuple[list[Tensor], Checked] | None = None
        self._packed: Checked | None = None
        self._plans = ThreadPlans()

    def __repr__(self) -> str:
        return f"Operator({self.name!r}, backend={self.manifest['backend']!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied and pickled as the folder of its build and its packed weights. Raises GraphError
        for one rank of several, whose group is this process's own."""
        if self.group is not None:
            raise GraphError(f"{self.name}: rank {self.group.rank} of {self.group.ranks} cannot be "
                             "copied", hint="graphdsl.load(path, tensor_parallel=group)")
        return _reopened, (self.path.resolve(), self._weights and self._weights[0])

    def bind(self, state_dict: Weights) -> Operator:
        """Takes the weights, from the host or the operator's device: folds, converts and packs
        copies of them, which lie on the current device.

        Raises GraphError for a weight that is missing, unknown, or of another shape or kind.
        """
        return self.bind_packed(self.pack_weights(state_dict))

    def with_weights(self, state_dict: Weights) -> Operator:
        """Another operator of the same build with weights of its own: a thread's plans and its
        workspace are shared. Raises GraphError as `bind` does."""
        return self.with_packed(self.pack_weights(state_dict))

    def with_packed(self, weights: list[Tensor]) -> Operator:
        """As `with_weights`, with weights that `pack_weights` made; they are not copied."""
        twin = object.__new__(Operator)
        vars(twin).update(vars(self), _weights=None, _packed=None)
        return twin.bind_packed(weights)

    def bind_packed(self, weights: list[Tensor]) -> Operator:
        """Takes weights that `pack_weights` made, as they are. Raises GraphError for others."""
        self._weights = weights, self._format.check(weights)
        return self

    def pack_weights(self, state_dict: Weights) -> list[Tensor]:
        """The params of the library, in its order and format. Raises GraphError as `bind` does."""
        return self._format.pack(state_dict)

    def dequantised(self, state_dict: Weights) -> dict[str, Tensor]:
        """The weights that a build computes with: f32 of what it holds quantised, the others as
        they are. Raises GraphError as `bind` does."""
        return self._format.dequantised(state_dict)

    @property
    def weights(self) -> list[Tensor]:
        """The packed weights, as `torch.ops.graphdsl.<name>` takes them."""
        return list(self._bound_weights()[0])

    def _bound_weights(self) -> tuple[list[Tensor], Checked]:
        if self._weights is None and self.manifest["weights"]:
            raise GraphError(f"{self.name}: no weights are bound",
                             hint="call operator.bind(state_dict) first")
        if self._weights is None:
            self.bind({})
        assert self._weights is not None
        return self._weights

    @property
    def block(self) -> int:
        """The slots of a block of paged caches; 0 where there are none."""
        return max((p.layout.block for p in self.inputs + self.state if p.layout), default=0)

    def whole_pages(self, slots: int) -> int:
        """The capacity of a state for at least so many slots: whole pages of paged caches, whole
        tiles of others that have tiles."""
        layouts = [p.layout for p in self.inputs + self.state if p.layout]
        least = NZ_WIDTH if any(layout.storage == "nz" for layout in layouts) else 1
        step = self.block or least
        return -(-slots // step) * step

    def new_state(self, batch: int, slots: int) -> State:
        """Empty KV caches for `batch` sequences of up to `slots` tokens. Paged ones have a pool of
        just the blocks that this takes, and a block table in which every sequence has its own.

        Raises GraphError for numbers that the layer does not take.
        """
        wanted = {"batch": batch, "slots": slots}
        for name, size in wanted.items():
            if not isinstance(size, int):
                raise GraphError(f"{self.name}: {name} is {size!r}, wanted a whole number")
        for dim in self.dims if self.state else ():
            if dim.name in wanted and not dim.lo <= wanted[dim.name] <= dim.hi:
                raise GraphError(f"{self.name}: {dim.name} is {wanted[dim.name]}, wanted {dim.lo} "
                                 f"to {dim.hi}")
        pages = self.whole_pages(slots) // max(self.block, 1)
        dims = {"batch": batch, "slots": self.whole_pages(slots), "pages": pages,
                "blocks": batch * pages}
        own = torch.arange(batch * pages, dtype=torch.int32, device=HOST).view(batch, pages)
        at = self.device.current()
        return {p.name: torch.zeros(p.sizes(dims), dtype=p.dtype, device=at) if p.layout
                else own.to(p.device, copy=True) for p in self.state}

    def __call__(self, *inputs: Tensor, state: State | None = None,
                 out: Sequence[Tensor] | None = None) -> Any:
        """The results, one tensor or a tuple; `state` is changed in place. Given `out`, results are
        written to its tensors, which share no memory with others, and nothing is allocated.

        Raises GraphError, before native code runs, for a tensor of another rank, size, dtype or
        device, or with a gap between its rows, and for ids, positions or rows out of range.
        """
        weights = self._bound_weights()[1]  # held, so that another `bind` does not free them
        results = self._again(inputs, state, out, weights)
        if results is None:
            given = self._tensors(state or {})
            results = self._run(inputs, given, weights, out)
            if state and not self._away:
                self._plans.remember(inputs, state, given, out or ())
        return results[0] if len(results) == 1 else tuple(results)

    def prepared(self, *inputs: Tensor, state: State | None = None) -> Callable[[], Any]:
        """A call on these tensors that is made again and again, as a loop of decoding does; on the
        host it is a `Prepared`, which writes to the same results."""
        call = partial(self, *inputs, state=state)
        if self._away:
            return call
        return Prepared(call, self._plans, lambda: self._bound_weights()[1],
                        lambda: (inputs, self._tensors(state or {})))

    def _again(self, inputs: tuple[Tensor, ...], state: State | None,
               out: Sequence[Tensor] | None, weights: Checked) -> Sequence[Tensor] | None:
        """The results of a call like an earlier one with this state; nothing where anything is not
        as it was then. Its tensors are the very ones, at the very places, so nothing else is asked
        of them: they may be many, and after a step they are not in the processor's caches."""
        bound, held = self._plans.states.get(id(state), (None, None))
        if bound is None or held is None or state is None:
            return None
        if threads_now() != bound.threads or torch.is_grad_enabled():
            return None  # in grad mode, more has to be asked of all tensors
        try:
            alike = held.same_rest(inputs, out or ())
            fits = held.same_state(state) and (alike or (
                bound.takes(inputs) and (out is None or bound.gives(out))))
        except (AttributeError, RuntimeError):  # no tensor, or one without memory of its own
            return None
        if not fits:
            return None
        results = bound.new_results() if out is None else out
        bound.bind(weights)
        self._plans.last = bound
        addresses = () if alike else tuple(map(torch.Tensor.data_ptr, (*inputs, *results)))
        if not stepped(bound.plan.step_held, held, addresses):
            self._refuse_range(inputs, self._tensors(state))
        return results

    def _tensors(self, state: State) -> list[Tensor]:
        try:
            tensors = [state[name] for name in self._state_names]
        except KeyError:
            tensors = []
        if len(state) != len(self._state_names) or len(tensors) != len(state):
            raise GraphError(f"{self.name}: state has {listed(state)}, wanted "
                             f"{listed(self._state_names)}",
                             hint="operator.new_state(batch, slots) makes it")
        return tensors

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor],
            state: Sequence[Tensor]) -> list[Tensor]:
        """The results for tensors in the manifest's order; weights as `pack_weights` made them.
        Raises GraphError as a call does."""
        packed = self._packed
        if packed is None or not packed.same(weights):
            packed = self._packed = self._format.check(weights)
        return list(self._run(inputs, state, packed))

    def _run(self, inputs: Sequence[Tensor], state: Sequence[Tensor],
             weights: Checked, out: Sequence[Tensor] | None = None) -> Sequence[Tensor]:
        if self._away:
            inputs, state = self._gathered(inputs, state, weights)
        tensors = [*inputs, *state]
        bound = self._known(tensors) or self._new_plan(inputs, state)
        if out is not None:
            self._check_results(inputs, state, out)
        outputs = bound.new_results() if out is None else out
        bound.bind(weights)
        self._plans.last = bound
        addresses = list(map(torch.Tensor.data_ptr, (*tensors, *outputs)))
        # The stream comes last: whatever torch does before is on it then.
        stream = self.device.stream(self.name) if self._away else 0
        if not stepped(bound.plan.step, addresses, stream):
            self._refuse_range(inputs, state)
        return outputs

    def _gathered(self, inputs: Sequence[Tensor], state: Sequence[Tensor],
                  weights: Checked) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors of a call that is not on the host, each where it is read."""
        found = self.device.gathered(self.name, self.inputs, inputs, weights.device)
        kept = self.device.gathered(self.name, self.state, state, weights.device)
        claim(self.name, self.library, self.device.current())
        return found, kept

    def _known(self, tensors: Sequence[Tensor]) -> BoundPlan | None:
        """The plan of a call like an earlier one; nothing where anything is not as it was then.

        This is `check` for the tensors of every call after the first, without its messages.
        """
        try:
            shapes = [t.shape for t in tensors]
            key = self._key(shapes)
            bound = self._plans.plans.get(key)
            if bound is None or shapes != bound.shapes:
                return None
            for tensor, dtype in zip(tensors, bound.dtypes, strict=True):
                if not (tensor.dtype is dtype and (tensor.is_cpu or self._away)
                        and tensor.is_contiguous()):
                    return None
        except (AttributeError, IndexError, RuntimeError):  # no tensor, no such axis, sparse
            return None
        if torch.is_grad_enabled() and any([t.requires_grad for t in tensors]):
            return None
        self._plans.plans.move_to_end(key)
        return bound

    def _key(self, shapes: Sequence[torch.Size]) -> tuple[int, ...]:
        sizes = [shapes[port][axis] for port, axis in self._sources]
        return (threads_now(), *sizes)

    def check(self, inputs: Sequence[Tensor], state: Sequence[Tensor]) -> dict[str, int]:
        """The dims that these tensors bind. Raises GraphError where they do not fit."""
        for what, given, wanted in (("inputs", inputs, self.inputs),
                                    ("state tensors", state, self.state)):
            if len(given) != len(wanted):
                raise GraphError(f"{self.name}: {len(given)} {what} given, {len(wanted)} wanted",
                                 hint=f"{what}: {listed(p.name for p in wanted)}")
        dims: dict[str, int] = {}
        for tensor, port in zip((*inputs, *state), self.inputs + self.state, strict=True):
            port.check(self.name, tensor, dims)
        for dim in self.dims:
            dim.check(self.name, dims)
        return dims

    def _check_results(self, inputs: Sequence[Tensor], state: Sequence[Tensor],
                       out: Sequence[Tensor]) -> None:
        """Raises GraphError for tensors that the results cannot be written to."""
        if self._away:
            raise GraphError(f"{self.name}: out is for operators on the host",
                             hint="leave it out: results are made on the device")
        if len(out) != len(self.outputs):
            raise GraphError(f"{self.name}: {len(out)} tensors given as out, {len(self.outputs)} "
                             "wanted", hint=f"results: {listed(p.name for p in self.outputs)}")
        dims = self.check(inputs, state)
        for tensor, port in zip(out, self.outputs, strict=True):
            port.check(self.name, tensor, dims)

    def _refuse_range(self, inputs: Sequence[Tensor], state: Sequence[Tensor]) -> None:
        """Says which index is out of range; native code found one and did nothing."""
        dims, tensors = self.check(inputs, state), [*inputs, *state]
        for check in self.pages:
            check.check_length(self.name, self._given_names, tensors)
        for tensor, port in zip(tensors, self.inputs + self.state, strict=True):
            port.check_range(self.name, tensor, dims)
        for check in self.pages:
            check.check_blocks(self.name, self._given_names, tensors)
        raise GraphError(f"{self.name}: an input was changed by another thread during the call")

    def _new_plan(self, inputs: Sequence[Tensor], state: Sequence[Tensor]) -> BoundPlan:
        from graphdsl.runtime._native import Plan

        dims = self.check(inputs, state)
        shapes = [t.shape for t in (*inputs, *state)]
        key = self._key(shapes)
        workspace = self._workspace(dims, key[0])
        ranges = [(i, shapes[i].numel(), int(low.value(dims)), int(high.value(dims)))
                  for i, port in enumerate(self.inputs + self.state) if port.device == HOST
                  for low, high in port.ranges]
        plan = Plan(self._native, [dims[dim.name] for dim in self.dims], key[0],
                    -(-workspace.data_ptr() // 64) * 64, len(shapes),
                    len(self.manifest["params"]), len(self.outputs), ranges,
                    [check.sizes(shapes) for check in self.pages])
        if self.group is not None and "group" in self.manifest and not self._away:
            plan.connect(self.group.exchange)
        place = {"device": self.device.current()} if self._away else {}
        bound = BoundPlan(plan, key[0], len(state), shapes,
                          [p.dtype for p in (*self.inputs, *self.state)],
                          [(p.sizes(dims), {"dtype": p.dtype, **place}) for p in self.outputs])
        self._plans.add(key, bound)
        return bound

    def call_times(self) -> list[tuple[int, int, int]]:
        """Of every call of the plan in this thread's last step: its nanoseconds, how often it ran,
        and the nanoseconds that thread 0 waited before it. Only of builds that measure."""
        assert self._plans.last is not None
        return self._plans.last.plan.times()

    def workspace_bytes(self, dims: Mapping[str, int]) -> tuple[int, int]:
        """Bytes of workspace that a call of these dims needs on torch's threads, and the least
        that any placement of its buffers needs (the largest sum of those in use at once)."""
        sizes = [dims[dim.name] for dim in self.dims]
        threads = torch.get_num_threads()
        return (self._native.workspace_bytes(sizes, threads),
                self._native.workspace_lower_bound(sizes, threads))

    def _workspace(self, dims: Mapping[str, int], threads: int) -> Tensor:
        """This thread's workspace, made larger where it has to be: plans on the old one go."""
        own = self._plans
        size = self._native.workspace_bytes([dims[dim.name] for dim in self.dims], threads) + 64
        if own.workspace is None or own.workspace.numel() < size:
            own.clear()
            try:
                own.workspace = torch.empty(size, dtype=torch.uint8, device=self.device.current())
            except RuntimeError:
                what = ", ".join(f"{name} {value}" for name, value in dims.items())
                raise GraphError(f"{self.name}: no memory for a workspace of {size} bytes "
                                 f"({what})", hint="give fewer tokens at a time") from None
        return own.workspace


def _reopened(path: Path, weights: list[Tensor] | None) -> Operator:
    operator = load(path)
    return operator if weights is None else operator.bind_packed(weights)


def load(path: str | Path, group: Group | None = None) -> Operator:
    """The operator that was built into this folder; `group` has this process's rank where it was
    built for one of several.

    Raises GraphError when the folder holds none, it is damaged, this machine lacks what it was
    built for, or it is for another rank.
    """
    return Operator(Path(path), group)
