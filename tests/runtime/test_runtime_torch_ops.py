"""`torch.ops.graphdsl.<name>` under everything that torch does with an operator."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runtime_layers import LENGTHS, SLOTS, built, opened, session, steps
from torch._dynamo.testing import CompileCounterWithBackend

from graphdsl.errors import GraphError
from graphdsl.models.llama import Config, Llama
from graphdsl.runtime.door import schema, torch_name, torch_op
from graphdsl.runtime.module import OperatorModule
from graphdsl.runtime.operator import Operator

COMPILE_WARNINGS = "ignore::DeprecationWarning"
X, POSITIONS = next(steps())


def caches(operator: Operator) -> list[torch.Tensor]:
    return list(operator.new_state(2, SLOTS).values())


def check_session(operator: Operator, call: Any) -> None:
    """`call(x, positions, state)` equals the operator over all steps, caches included."""
    state = operator.new_state(2, SLOTS)
    wanted = session(operator, state)
    own = caches(operator)
    for (x, positions), y in zip(steps(), wanted, strict=True):
        assert torch.equal(call(x, positions, own), y)
    assert all(torch.equal(a, b) for a, b in zip(own, state.values(), strict=True))


def test_schema(block: Operator, pair: Operator) -> None:
    assert schema(block) == ("(Tensor x, Tensor positions, Tensor[] weights, Tensor(a!)[] state) "
                             "-> Tensor")
    assert schema(pair) == "(Tensor x, Tensor[] weights) -> (Tensor, Tensor)"


def test_eager(block: Operator) -> None:
    operation, weights = torch_op(block), block.weights
    check_session(block, lambda x, positions, state: operation(x, positions, weights, state))
    named = getattr(torch.ops.graphdsl, torch_name(block))
    check_session(block, lambda x, positions, state: named(x, positions, weights, state))


def test_inference_mode(block: Operator) -> None:
    module = OperatorModule(block)
    with torch.inference_mode():
        check_session(block, module)


def test_several_results_without_state(pair: Operator) -> None:
    x = torch.randn(2, 3, 32)
    found = torch_op(pair)(x, pair.weights)
    assert isinstance(found, tuple)
    assert all(torch.equal(a, b) for a, b in zip(found, pair(x), strict=True))


def test_defined_once(block: Operator) -> None:
    assert torch_op(block) is torch_op(block)


@pytest.mark.filterwarnings(COMPILE_WARNINGS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compiled_whole(block: Operator, backend: str, mode: Any) -> None:
    torch._dynamo.reset()
    assert LENGTHS[:5] == (7, 1, 1, 3, 5)
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(OperatorModule(block), fullgraph=True, backend=counter)
    with mode():
        check_session(block, compiled)
    assert counter.frame_count <= 3


TINY = Config(vocab=50, hidden=32, layers=3, heads=2, kv_heads=1, head_dim=16, ffn=48)


@pytest.mark.filterwarnings(COMPILE_WARNINGS)
def test_a_whole_model_compiled(cache: Path) -> None:
    torch._dynamo.reset()
    operator = opened(built(Llama(TINY), cache))
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(OperatorModule(operator), fullgraph=True, backend=counter)
    state, own = operator.new_state(2, SLOTS), caches(operator)
    for number, (_, positions) in enumerate(steps()):
        ids = (positions * 7 + number) % TINY.vocab
        last = torch.full((2, 1), positions.shape[1] - 1, dtype=torch.int32)
        with torch.no_grad():
            found = compiled(ids, positions, last, own)
        assert torch.equal(found, operator(ids, positions, last, state=state))
    assert counter.frame_count <= 3
    assert all(torch.equal(a, b) for a, b in zip(own, state.values(), strict=True))


@pytest.mark.filterwarnings(COMPILE_WARNINGS)
def test_compiled_among_other_operations(block: Operator) -> None:
    torch._dynamo.reset()
    module = OperatorModule(block)

    def step(x: torch.Tensor, positions: torch.Tensor, state: list[torch.Tensor]) -> torch.Tensor:
        y: torch.Tensor = module(x.transpose(1, 2).contiguous().transpose(1, 2).contiguous() * 2,
                                 positions + 1, state)
        return y.relu() + state[0].sum()

    compiled = torch.compile(step, fullgraph=True)
    own, state = caches(block), caches(block)
    with torch.no_grad():
        for x, positions in list(steps())[:3]:
            torch.testing.assert_close(compiled(x, positions, own), step(x, positions, state))
    torch.testing.assert_close(own, state)


@pytest.mark.filterwarnings(COMPILE_WARNINGS)
def test_compiled_code_does_not_copy_the_caches(block: Operator) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(OperatorModule(block), fullgraph=True)
    x, positions = next(steps(1, (3,)))
    state = list(block.new_state(1, 1 << 18).values())
    with torch.no_grad():
        compiled(x, positions, state)
        with torch.profiler.profile(profile_memory=True) as profile:
            compiled(x, positions, state)
    most = max(event.cpu_memory_usage for event in profile.key_averages())
    assert most < state[0].nbytes


@pytest.mark.filterwarnings(COMPILE_WARNINGS)
def test_opcheck(block: Operator, pair: Operator) -> None:
    passed = {"test_schema": "SUCCESS", "test_autograd_registration": "SUCCESS",
              "test_faketensor": "SUCCESS", "test_aot_dispatch_dynamic": "SUCCESS"}
    given = (X, POSITIONS, block.weights, caches(block))
    assert torch.library.opcheck(torch_op(block), given) == passed
    assert torch.library.opcheck(torch_op(pair), (X, pair.weights)) == passed


def test_meta_tensors_give_shapes(pair: Operator) -> None:
    y, h = torch_op(pair)(X.to("meta"), [w.to("meta") for w in pair.weights])
    assert (y.shape, h.shape, y.device.type) == ((2, 7, 48), (2, 7, 32), "meta")


@pytest.mark.filterwarnings(COMPILE_WARNINGS)
def test_what_does_not_fit(block: Operator) -> None:
    operation, weights, state = torch_op(block), block.weights, caches(block)
    with pytest.raises(GraphError, match=r"x is \[2, 7, 16\]"):
        operation(X[:, :, :16], POSITIONS, weights, state)
    with pytest.raises(GraphError, match="positions holds 34, wanted -1 to 31"):
        operation(X, POSITIONS + SLOTS - 4, weights, state)
    with pytest.raises(GraphError, match="packed weights given"):
        operation(X, POSITIONS, weights[1:], state)
    with pytest.raises(GraphError, match="state tensors given, 2 wanted"):
        operation(X, POSITIONS, weights, state[1:])
    with pytest.raises(GraphError, match="x requires grad"):
        operation(X.clone().requires_grad_(), POSITIONS, weights, state)
    with torch.no_grad():
        operation(X.clone().requires_grad_(), POSITIONS, weights, state)


@pytest.mark.filterwarnings(COMPILE_WARNINGS)
@pytest.mark.parametrize(("x", "message"), [
    (X[:, :, :16], r"Block: x is \[2, 7, 16\]"), (X[0], "Block: x has 2 dims"),
    (X.clone().requires_grad_(), "Block: an input requires grad"),
])
def test_what_does_not_fit_is_refused_while_compiling(block: Operator, x: torch.Tensor,
                                                      message: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(OperatorModule(block), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=message):
        compiled(x, POSITIONS, caches(block))


LOADING = """
import sys
from pathlib import Path
import torch
sys.path[:0] = sys.argv[1].split(':')
from runtime_layers import SLOTS, opened, session, steps
import graphdsl
from graphdsl.models.llama import Config, Llama
from graphdsl.runtime.door import torch_op

torch_op(graphdsl.load(sys.argv[2]))
program = torch.export.load(sys.argv[3]).module()
operator = opened(Path(sys.argv[2]))
state = operator.new_state(2, SLOTS)
wanted = session(operator, state)
own = list(operator.new_state(2, SLOTS).values())
for (x, positions), y in zip(steps(), wanted):
    assert torch.equal(program(x, positions, own), y)
assert all(torch.equal(a, b) for a, b in zip(own, state.values()))
print("equal")
"""


@pytest.mark.filterwarnings(COMPILE_WARNINGS)
def test_exported_and_loaded_in_a_new_process(block: Operator, block_path: Path,
                                              tmp_path: Path) -> None:
    length = {1: torch.export.Dim("tokens", min=1, max=64)}
    program = torch.export.export(OperatorModule(block), (X, POSITIONS, caches(block)),
                                  dynamic_shapes={"arguments": (length, length, [None, None])})
    check_session(block, program.module())
    file = tmp_path / "block.pt2"
    torch.export.save(program, file)
    here = ":".join(map(str, Path(__file__).parents[:2]))
    done = subprocess.run([sys.executable, "-c", LOADING, here, str(block_path), str(file)],
                          capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "equal", done.stderr
