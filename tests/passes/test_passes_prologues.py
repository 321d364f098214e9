"""Loops that become prologues of matmuls, and the reasons for those that do not."""

from __future__ import annotations

from collections import Counter

import pytest
from passcase import CPU, SINGLE, assert_same, graph_of, leaf, line_of, names

from graphdsl.ir import Dim, Graph, TensorType, Value
from graphdsl.layer import BATCH, SLOTS, trace
from graphdsl.models.llama import Config, Llama
from graphdsl.ops.activation import silu
from graphdsl.ops.kv import kv_append
from graphdsl.ops.linear import linear
from graphdsl.ops.math import reduce_sum, tanh
from graphdsl.ops.norm import layer_norm, rms_norm, softmax
from graphdsl.ops.shape import reshape
from graphdsl.passes.base import Missed
from graphdsl.passes.pipeline import Lowered, run_pipeline
from graphdsl.printer import text

TOKENS = Dim("tokens")
X = leaf("x", TOKENS, 8)
NORM = leaf("n", 8, kind="param")
GATE, UP = (leaf(n, 16, 8, kind="param") for n in ("gate", "up"))
SQUARE = leaf("s", 8, 8, kind="param")


def normed() -> Value:
    y: Value = rms_norm(X, NORM, eps=1e-5)
    return y


def lowered(graph: Graph) -> Lowered:
    """After all passes; the numbers stay, and another time changes nothing."""
    found = run_pipeline(graph, CPU, verify=True)
    assert_same(graph, found)
    assert text(run_pipeline(found.graph, CPU).graph) == text(found.graph)
    return found


def misses(found: Lowered) -> list[Missed]:
    return [m for report in found.report for m in report.missed if m.rule == "MatmulPrologue"]


def gated() -> Value:
    h = normed()
    y: Value = silu(linear(h, GATE)) * linear(h, UP)
    return y


def rows_of_heads() -> Value:
    return linear(softmax(reshape(X, shape=(TOKENS, 2, 4))), leaf("w", 6, 4, kind="param"))


FUSED = {
    "norm": lambda: linear(normed(), GATE),
    "layer norm": lambda: linear(layer_norm(X, NORM, NORM, eps=1e-5), GATE),
    "bias and activation": lambda: silu(linear(normed(), GATE, leaf("b", 16, kind="param"))),
    "gate and up": gated,
    "x is the residual too": lambda: X + linear(normed(), SQUARE),
    "rows of heads": rows_of_heads,
    "one after another": lambda: linear(softmax(linear(normed(), SQUARE)), GATE),
}


@pytest.mark.parametrize("case", FUSED)
def test_fused(case: str) -> None:
    found = lowered(graph_of(FUSED[case]()))
    assert set(names(found.graph)) <= {"matmul_prologue", "reshape"}
    assert not misses(found)


def test_only_for_targets_that_want_it() -> None:
    assert names(run_pipeline(graph_of(linear(normed(), GATE)), SINGLE).graph) == [
        "loop", "matmul_nt"]


def test_no_prologue_without_a_reduction() -> None:
    found = lowered(graph_of(linear(tanh(X), GATE)))
    assert names(found.graph) == ["loop", "matmul_nt"]
    assert not misses(found)


def test_two_users() -> None:
    h = rms_norm(X, NORM, eps=1e-5)  # norm
    (miss,) = misses(lowered(graph_of(linear(h, GATE), h @ leaf("m", 8, 4))))
    assert miss.reason.startswith("what the loop makes is read by matmul at ")
    assert miss.at == line_of("norm", __file__)


def test_output_of_the_graph() -> None:
    h = normed()
    (miss,) = misses(lowered(graph_of(linear(h, GATE), h)))
    assert miss.reason == "what the loop makes is an output too"


def test_loop_with_two_outputs() -> None:
    total = X + leaf("r", TOKENS, 8)
    (miss,) = misses(lowered(graph_of(linear(rms_norm(total, NORM, eps=1e-5), GATE), total)))
    assert miss.reason == "the loop has 2 outputs, wanted 1"


def test_operand_of_the_epilogue() -> None:
    h = normed()
    (miss,) = misses(lowered(graph_of(h + linear(h, SQUARE))))
    assert miss.reason == "what the loop makes is read by the matmul's epilogue too"


def test_a_scalar_a_row() -> None:
    (miss,) = misses(lowered(graph_of(linear(reduce_sum(X), leaf("w", 6, 1, kind="param")))))
    assert miss.reason == "the loop makes less than it iterates over"


def test_weight_read_plainly() -> None:
    x = leaf("x", 8, 8)
    (miss,) = misses(lowered(graph_of(linear(softmax(x * SQUARE), SQUARE))))
    assert miss.reason == "the loop reads the matmul's weight"


def test_state_that_is_overwritten() -> None:
    """The product needs the new cache, the loop the old one."""
    old = Value(TensorType((BATCH, SLOTS, 2, 4), "f32"), name="kv.k", kind="state")
    positions = leaf("positions", BATCH, TOKENS, dtype="i32")
    new = kv_append(old, leaf("k", BATCH, TOKENS, 2, 4), positions)
    product = linear(softmax(old), leaf("w", 4, 4, kind="param")) * new
    found = lowered(graph_of(product, new, state=(old,)))
    assert [m.reason for m in misses(found)] == ["the loop reads state that is overwritten later"]


def test_in_a_model() -> None:
    """Both norms of a layer, once in the repeat's body, and the last norm."""
    config = Config(vocab=29, hidden=16, layers=3, heads=4, kv_heads=2, head_dim=4, ffn=24)
    found = run_pipeline(trace(Llama(config), "bf16"), CPU)
    fired = Counter(f.rule for report in found.report for f in report.fired)
    assert fired["MatmulPrologue"] == 3
    assert not misses(found)
