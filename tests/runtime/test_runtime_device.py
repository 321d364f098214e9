"""Operators whose tensors are on a device of torch: where they lie, what is refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from runtime_layers import HIDDEN, opened, weights_of

from graphdsl.errors import GraphError
from graphdsl.runtime import device as devices
from graphdsl.runtime import operator as operators
from graphdsl.runtime.caches import logical
from graphdsl.runtime.device import HOST, Device, claim, open_device
from graphdsl.runtime.door import _dispatch_keys, _fake
from graphdsl.runtime.folder import read_manifest
from graphdsl.runtime.operator import Operator, load
from graphdsl.runtime.ports import Extent, Port
from graphdsl.runtime.torch_class import register
from graphdsl.runtime.torch_device import DeviceLayer
from graphdsl.runtime.weights import Checked

STREAM = 0x5EA


class Elsewhere(torch.Tensor):
    """A tensor that says that it is on a device, and can be copied from there."""

    held: torch.Tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return elsewhere(args[0].held, str(args[0].device))
        assert func is torch.ops.aten._to_copy.default, func
        return func(args[0].held, **(kwargs or {}))


def elsewhere(tensor: torch.Tensor, device: str) -> torch.Tensor:
    made: Any = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
        Elsewhere, tensor.shape, dtype=tensor.dtype, device=torch.device(device))
    made.held = tensor
    found: torch.Tensor = made
    return found


def module(index: int | None = None) -> SimpleNamespace:
    """What torch has for a device: the current one, and its stream."""
    stream = SimpleNamespace(npu_stream=STREAM)
    return SimpleNamespace(current_device=lambda: index, current_stream=lambda: stream)


def port(name: str, device: str) -> Port:
    return Port(name, "f32", (Extent((("n", 1),), 0),), device=device)


CUDA = Device("cuda", module(0), "npu_stream")
PORTS = [port("x", "cuda"), port("positions", HOST), port("y", "cuda")]


def gathered(x: str, positions: str = "cpu", y: str = "cuda:0",
             weights: str = "cuda:0", device: Device = CUDA) -> list[torch.Tensor]:
    given = [torch.ones(2) if where == "cpu" else elsewhere(torch.ones(2), where)
             for where in (x, positions, y)]
    return device.gathered("Layer", PORTS, given, torch.device(weights) if weights else None)


def test_what_the_host_reads_is_copied_there() -> None:
    for where in ("cpu", "cuda:0"):
        x, positions, _ = gathered("cuda:0", where)
        assert torch.equal(positions, torch.ones(2))
        assert (x.device, positions.device) == (torch.device("cuda:0"), torch.device("cpu"))


@pytest.mark.parametrize(("where", "weights", "message"), [
    ({"x": "cpu"}, "cuda:0", r"Layer: x is on cpu, but its weights are on cuda:0\n"
                             r'  hint: x.to\("cuda:0"\)'),
    ({"x": "cuda:1"}, "cuda:0", "x is on cuda:1, but its weights are on cuda:0"),
    ({"x": "cuda:0", "y": "cuda:1"}, "cuda:0", "y is on cuda:1, but its weights are on cuda:0"),
    ({"x": "cuda:1"}, "", "x is on cuda:1, but the current device is cuda:0"),
    ({"x": "cuda:0", "positions": "xpu:0"}, "cuda:0",
     "positions is on xpu:0, wanted the CPU or cuda"),
    ({"x": "cuda:1", "y": "cuda:1"}, "cuda:1",
     r"weights are on cuda:1, but the current device is cuda:0\n.*torch.cuda.set_device\(1\)")])
def test_tensors_of_a_call_are_in_one_place(where: Mapping[str, str], weights: str,
                                            message: str) -> None:
    with pytest.raises(GraphError, match=message):
        gathered(**where, weights=weights)  # type: ignore[arg-type]


def test_a_thread_runs_a_library_on_one_device() -> None:
    for _ in range(2):
        claim("Layer", "of this test", torch.device("cuda:0"))
    with pytest.raises(GraphError, match="weights are on cuda:1, but this thread has run the "
                                         "library on cuda:0"):
        claim("Layer", "of this test", torch.device("cuda:1"))


def test_the_package_of_a_device_is_loaded_when_it_is_needed(
        monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_device("Layer", "cpu") == Device()
    assert not Device().away
    package: Any = ModuleType("torch_npu")
    package.npu = module()
    monkeypatch.setitem(sys.modules, "torch_npu", package)
    device = open_device("Layer", "npu")
    assert device == Device("npu", package.npu, "npu_stream")
    assert (device.away, device.stream("Layer")) == (True, STREAM)


def test_a_device_without_a_stream() -> None:
    none = SimpleNamespace(current_device=lambda: 0,
                           current_stream=lambda: SimpleNamespace(npu_stream=0))
    with pytest.raises(GraphError, match="Layer: torch has no current stream on cuda:0"):
        Device("cuda", none, "npu_stream").stream("Layer")


def test_the_manifest_names_the_device(block_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its package is loaded before the library, which may need it."""
    monkeypatch.setattr(operators, "read_manifest",
                        lambda path: {**read_manifest(path), "device": "xyz"})
    with pytest.raises(GraphError, match=r"Block: its tensors are on xyz, which needs torch_xyz, "
                                         r"and that is not installed\n  hint: install torch_xyz"):
        load(block_path)


@pytest.mark.parametrize(("error", "message"), [
    (ModuleNotFoundError("No module named 'torch_npu'", name="torch_npu"), "that is not installed"),
    (ImportError("libhccl.so: no such file"), "that does not load: libhccl.so: no such file")])
def test_a_package_that_is_missing(error: ImportError, message: str,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise error

    monkeypatch.setattr("graphdsl.runtime.device.import_module", fail)
    with pytest.raises(GraphError, match=f"Layer: its tensors are on npu, which needs torch_npu, "
                                         f"and {message}\n  hint: pip install torch-npu"):
        open_device("Layer", "npu")


def with_device(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opens operators for another device than their manifest's, in a thread that has run none."""
    monkeypatch.setattr(devices, "_CLAIMS", devices._Claims())
    monkeypatch.setattr(operators, "open_device", lambda owner, kind: device)


class Steps:
    """Takes the place of native plans, and keeps what they are given."""

    taken: list[tuple[list[int], int]]

    def __init__(self, *given: Any) -> None:
        self.ranges, self.pages = given[-2:]

    def bind(self, params: Any) -> None:
        pass

    def step(self, addresses: list[int], stream: int = 0) -> bool:
        Steps.taken.append((addresses, stream))
        return True


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], int]]:
    Steps.taken = []
    monkeypatch.setattr("graphdsl.runtime._native.Plan", Steps)
    return Steps.taken


@pytest.fixture
def away(block_path: Path, monkeypatch: pytest.MonkeyPatch) -> Operator:
    """An operator on the meta device, whose positions the host reads."""
    with_device(Device("meta", module(), "npu_stream"), monkeypatch)
    operator = opened(block_path)
    operator.inputs[1] = replace(operator.inputs[1], device=HOST)
    return operator


def test_what_an_operator_makes_is_on_its_device(away: Operator) -> None:
    assert {w.device.type for w in away.weights} == {"meta"}
    assert {t.device.type for t in away.new_state(2, 8).values()} == {"meta"}


def test_a_call_on_a_device(away: Operator, taken: list[tuple[list[int], int]]) -> None:
    x = torch.empty(1, 3, HIDDEN, device="meta")
    positions, state = torch.arange(3, dtype=torch.int32)[None], away.new_state(1, 8)
    for given in (positions, elsewhere(positions, "meta"), positions):
        y = away(x, given, state=state)
        assert (y.shape, y.device.type) == (x.shape, "meta")
    assert [stream for _, stream in taken] == [STREAM] * 3
    assert taken[0][0][1] == positions.data_ptr()
    assert len(away._plans.plans) == 1
    (plan,) = (bound.plan for bound in away._plans.plans.values())
    ranges: Any = vars(plan)["ranges"]
    assert ranges == [(1, 3, -1, 8)], "numbers on the host alone are checked"


@pytest.mark.parametrize("seen", [False, True])
def test_a_call_with_a_tensor_of_the_host(away: Operator, seen: bool,
                                          taken: list[tuple[list[int], int]]) -> None:
    x, positions = torch.empty(1, 3, HIDDEN), torch.arange(3, dtype=torch.int32)[None]
    state = away.new_state(1, 8)
    if seen:
        away(x.to("meta"), positions, state=state)
    with pytest.raises(GraphError, match="Block: x is on cpu, but its weights are on meta"):
        away(x, positions, state=state)
    with pytest.raises(GraphError, match=r"Block: kv\.k is on cpu, but its weights are on meta"):
        away(x.to("meta"), positions, state={n: torch.zeros(t.shape) for n, t in state.items()})
    with pytest.raises(GraphError, match="x is a list, wanted a "):
        away(x.tolist(), positions, state=state)
    with pytest.raises(GraphError, match="1 inputs given, 2 wanted"):
        away(x.to("meta"), state=state)
    assert len(taken) == seen


def test_weights_come_from_either_side(block_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_device(Device("meta", module(), "npu_stream"), monkeypatch)
    operator = load(block_path)
    weights = weights_of(operator)
    operator.bind({n: elsewhere(w, "meta") if w.dim() == 2 else w for n, w in weights.items()})
    assert {w.device.type for w in operator.weights} == {"meta"}
    with pytest.raises(GraphError, match="weight wq is on cuda:0, wanted the CPU or meta"):
        operator.bind(weights | {"wq": elsewhere(weights["wq"], "cuda:0")})
    with pytest.raises(GraphError, match=r"packed weight .* on cpu, wanted .* on meta"):
        operator.bind_packed([torch.empty_like(w, device=HOST) for w in operator.weights])


def test_packed_weights_are_in_one_place(block: Operator) -> None:
    first, *rest = block.weights
    with pytest.raises(GraphError, match=r"packed weight .* on meta, wanted .* on the CPU"):
        block.bind_packed([first, *(w.to("meta") for w in rest)])


def test_results_are_those_of_the_host(block: Operator, block_path: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream is given to the library; one that has no use for it computes the same."""
    x, positions = torch.randn(1, 3, HIDDEN), torch.arange(3, dtype=torch.int32)[None]
    other = streamed(block_path, monkeypatch)
    for _ in range(2):
        assert torch.equal(other(x, positions, state=other.new_state(1, 8)),
                           block(x, positions, state=block.new_state(1, 8)))
    with pytest.raises(GraphError, match="positions holds 8, wanted -1 to 7"):
        other(x, positions + 6, state=other.new_state(1, 8))


def test_torch_finds_operators_of_a_device() -> None:
    assert _dispatch_keys("cpu") == ("CPU",)
    assert _dispatch_keys("privateuseone") == ("CPU", "PrivateUse1")


def test_traced_results_are_on_the_device(away: Operator) -> None:
    x, positions = torch.empty(1, 3, HIDDEN), torch.arange(3, dtype=torch.int32)[None]
    trace: Callable[..., torch.Tensor] = _fake(away)
    state = list(away.new_state(1, 8).values())
    with torch.no_grad():
        assert trace(x.to("meta"), positions, away.weights, state).device.type == "meta"
        away.inputs[0] = replace(away.inputs[0], device=HOST)
        found = _fake(away)(x, positions, away.weights, state)
    assert found.device.type == "meta", "where the host reads all inputs, that of the weights"


def test_caches_of_a_device_may_be_looked_into(paged: Operator) -> None:
    entry = next(p for p in paged.manifest["state"] if "layout" in p)
    caches = torch.empty(2, 8, 2, 16, device="meta")
    table = torch.arange(4, dtype=torch.int32).view(2, 2)
    pool = torch.empty(next(p for p in paged.state if p.name == entry["name"])
                       .sizes({"blocks": 4}), device="meta")
    assert logical(pool, entry, table=table).device.type == "meta"
    assert caches.shape == logical(pool, entry, table=table).shape


def test_no_weights_have_no_device() -> None:
    assert Checked((), (), None).same([])


def streamed(path: Path, monkeypatch: pytest.MonkeyPatch) -> Operator:
    """An operator for which the host's memory is a device with streams."""
    with_device(Device(HOST, module(), "npu_stream"), monkeypatch)
    return opened(path)


def test_a_device_behind_the_class_of_torch(block: Operator, block_path: Path, class_cache: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    given, native = streamed(block_path, monkeypatch), block
    name = register(given, "on a device", cache=class_cache, environment=dict(os.environ))
    made = torch.classes.graphdsl.Operation(name)
    x, positions = torch.randn(1, 3, HIDDEN), torch.arange(3, dtype=torch.int32)[None]
    state, own = native.new_state(1, 8), list(given.new_state(1, 8).values())
    wanted = native(x, positions, state=state)
    assert torch.equal(made.execute([x, positions, *own])[0], wanted)
    assert all(torch.equal(a, b) for a, b in zip(own, state.values(), strict=True))
    with pytest.raises(RuntimeError, match=r"Block: x is \[1, 3, 31\]"):
        made.execute([x[..., :31], positions, *own])


def test_what_layers_of_a_device_refuse(block_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = DeviceLayer(streamed(block_path, monkeypatch)).twin()
    x, positions = torch.randn(1, 3, HIDDEN), torch.arange(3, dtype=torch.int32)[None]
    state = list(layer._operator.new_state(1, 8).values())
    (y,), out = layer.execute([x, positions, *state]), torch.empty(1, 3, HIDDEN)
    layer.execute_out([x, positions, *state], [out])
    assert torch.equal(out, y)
    before = state[0].clone()
    for outputs, message in (([], "0 outputs given, wanted 1"),
                             ([out.half()], "the output output0 is torch.float16, wanted"),
                             ([out[:, :2]], r"the output output0 is \[1, 2, 32\]"),
                             ([out.to("meta")], "the output output0 is on meta, wanted the CPU")):
        with pytest.raises(GraphError, match=f"Block: {message}"):
            layer.execute_out([x + 1, positions, *state], outputs)
    assert torch.equal(state[0], before)
    with pytest.raises(GraphError, match="Block: 3 tensors given, wanted 2 inputs and 2 state"):
        layer.execute([x, positions, state[0]])
    with pytest.raises(GraphError, match="4 tensors given, 1 of them None, wanted 2 inputs"):
        layer.execute([x, None, *state])
    layer.set_name("layer 3")
    with pytest.raises(GraphError, match="layer 3: set_param: an operator has its numbers from"):
        layer.set_param("{}")
