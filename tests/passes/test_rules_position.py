"""Rope in the ways in which it is written, and why it is not recognised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from passcase import PLAIN, assert_same, graph_of, leaf, line_of, names
from rulecase import EVERY, golden_text, only_miss

from graphdsl.ir import Dim, Graph, Value
from graphdsl.layer import BATCH, Layer, Model, trace
from graphdsl.models.llama import Config, LlamaLayer
from graphdsl.ops.math import as_dtype, cast, cos, sin
from graphdsl.ops.position import rope_angles, rope_frequencies
from graphdsl.ops.shape import concat, repeat_interleave, reshape, slice, split, transpose
from graphdsl.passes import position as rules
from graphdsl.passes import views
from graphdsl.passes.engine import apply_rules
from graphdsl.passes.pipeline import run_pipeline

Golden = Callable[[str, str], None]
Tables = tuple[Value, Value]
TOKENS = Dim("tokens")
HEADS, DIM = 3, 8
LAST, FIRST = (BATCH, TOKENS, HEADS, DIM), (BATCH, HEADS, TOKENS, DIM)


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda r: r.name)
def test_golden(rule: Any, golden: Golden) -> None:
    golden(f"passes/position/{rule.name}.txt", golden_text(rule))


def tables(r: int, dtype: str = "f32") -> Tables:
    """cos and sin of [batch, tokens, r]."""
    c, s = (leaf(n, BATCH, TOKENS, r, dtype=dtype) for n in ("cos", "sin"))
    return c, s


def beside(x: Value, table: Value) -> Any:
    """A table [batch, tokens, n], broadcast to x."""
    return table[:, None] if x.shape[2] is TOKENS else table[:, :, None]


def attribute_of_rope(graph: Graph) -> bool:
    """Whether the only rope that is left turns pairs; beside it there is nothing but views."""
    lowered = run_pipeline(graph, EVERY, verify=True)
    found = [n for n in lowered.graph.nodes if n.op.kind != "view"]
    assert [n.name for n in found] == ["rope"], names(lowered.graph)
    return bool(found[0].attr["interleaved"])


def rotate_half(x: Value) -> Any:
    half = x.shape[-1] // 2  # type: ignore[operator]
    return concat(-x[..., half:], x[..., :half], axis=-1)


def rotated(x: Value, c: Value, s: Value) -> Any:
    """As transformers has it: tables that hold every angle twice."""
    wide_c, wide_s = (beside(x, concat(t, t, axis=-1)) for t in (c, s))
    return x * wide_c + rotate_half(x) * wide_s


def rotated_the_other_way_round(x: Value, c: Value, s: Value) -> Any:
    wide_c, wide_s = (concat(beside(x, t), beside(x, t), axis=3) for t in (c, s))
    return wide_s * rotate_half(x) + wide_c * x


def halves(x: Value, c: Value, s: Value) -> Any:
    half = x.shape[-1] // 2  # type: ignore[operator]
    a, b, c, s = x[..., :half], x[..., half:], beside(x, c), beside(x, s)
    return concat(a * c - b * s, b * c + a * s, axis=-1)


def split_halves(x: Value, c: Value, s: Value) -> Any:
    half = x.shape[-1] // 2  # type: ignore[operator]
    a, b = split(x, sizes=(half, half), axis=-1)
    c, s = beside(x, c), beside(x, s)
    return concat(c * a - s * b, s * a + c * b, axis=-1)


def pairs(x: Value, c: Value, s: Value) -> Any:
    *lead, d = x.shape
    two = reshape(x, shape=(*lead, d // 2, 2))  # type: ignore[operator]
    a, b, c, s = two[..., 0], two[..., 1], beside(x, c), beside(x, s)
    both = (a * c - b * s)[..., None], (b * c + a * s)[..., None]
    return reshape(concat(*both, axis=-1), shape=x.shape)


def columns(x: Value, c: Value, s: Value) -> Any:
    *lead, d = x.shape
    a, b = split(reshape(x, shape=(*lead, d // 2, 2)),  # type: ignore[operator]
                 sizes=(1, 1), axis=-1)
    c, s = beside(x, c)[..., None], beside(x, s)[..., None]
    return reshape(concat(a * c - b * s, b * c + a * s, axis=4), shape=x.shape)


def rotated_pairs(x: Value, c: Value, s: Value) -> Any:
    """As GLM has it: (-x1, x0, -x3, x2 ...) and tables that hold every angle twice in a row."""
    *lead, d = x.shape
    two = reshape(x, shape=(*lead, d // 2, 2))  # type: ignore[operator]
    turned = reshape(concat((-two[..., 1])[..., None], two[..., 0][..., None], axis=-1),
                     shape=x.shape)
    twice = [concat(t, t, axis=-1)[..., :t.shape[-1]] for t in (c, s)]
    wide_c, wide_s = (repeat_interleave(beside(x, t), n=2, axis=-1) for t in twice)
    return x * wide_c + turned * wide_s


TURNED: dict[str, tuple[Callable[[Value, Value, Value], Any], bool]] = {
    "rotate_half": (rotated, False),
    "rotate_half, other order": (rotated_the_other_way_round, False),
    "halves": (halves, False),
    "halves of a split": (split_halves, False),
    "pairs": (pairs, True),
    "columns": (columns, True),
    "rotated pairs": (rotated_pairs, True),
}


@pytest.mark.parametrize("shape", [LAST, FIRST], ids=["heads last", "heads first"])
@pytest.mark.parametrize("turned", TURNED)
def test_whole_heads(turned: str, shape: tuple[Any, ...]) -> None:
    maths, interleaved = TURNED[turned]
    graph = graph_of(maths(leaf("x", *shape), *tables(DIM // 2)))
    assert attribute_of_rope(graph) is interleaved


@pytest.mark.parametrize("turned", TURNED)
def test_the_first_channels(turned: str) -> None:
    maths, interleaved = TURNED[turned]
    for shape in (LAST, FIRST):
        x = leaf("x", *shape)
        c, s = tables(2)
        y = concat(maths(x[..., :4], c, s), x[..., 4:], axis=-1)
        last = y if shape == LAST else transpose(y, order=(0, 2, 1, 3))
        assert attribute_of_rope(graph_of(last)) is interleaved


@pytest.mark.parametrize("turned", TURNED)
def test_in_f32_and_rounded(turned: str) -> None:
    maths, interleaved = TURNED[turned]
    for shape in (LAST, FIRST):
        x = leaf("x", *shape, dtype="bf16")
        y = cast(maths(cast(x, dtype="f32"), *tables(DIM // 2)), dtype="bf16")
        last = y if shape == LAST else transpose(y, order=(0, 2, 1, 3))
        assert attribute_of_rope(graph_of(last)) is interleaved


@pytest.mark.parametrize("together", [True, False])
def test_halves_that_are_widened_one_by_one(together: bool) -> None:
    for shape in (LAST, FIRST):
        x = leaf("x", *shape, dtype="bf16")
        c, s = (beside(x, t) for t in tables(DIM // 2))
        a, b = (cast(h, dtype="f32") for h in (x[..., :4], x[..., 4:]))
        parts = [a * c - b * s, b * c + a * s]
        y = (cast(concat(*parts, axis=-1), dtype="bf16") if together
             else concat(*(cast(p, dtype="bf16") for p in parts), axis=-1))
        last = y if shape == LAST else transpose(y, order=(0, 2, 1, 3))
        assert attribute_of_rope(graph_of(last)) is False


@pytest.mark.parametrize("turned", TURNED)
@pytest.mark.parametrize("shape", [LAST, FIRST], ids=["heads last", "heads first"])
def test_with_rounded_tables(shape: tuple[Any, ...], turned: str) -> None:
    """The tables of transformers are rounded to the dtype of x: rope takes them before that."""
    maths, interleaved = TURNED[turned]
    c, s = (cast(t, dtype="bf16") for t in tables(DIM // 2))
    graph = graph_of(maths(leaf("x", *shape, dtype="bf16"), c, s))
    assert attribute_of_rope(graph) is interleaved


def test_angles_that_are_there_twice() -> None:
    """cos and sin of (angles, angles), scaled: each angle is computed once."""
    positions, x = leaf("positions", BATCH, TOKENS, dtype="i32"), leaf("x", *FIRST, dtype="bf16")
    frequencies = rope_frequencies(rotary_dim=DIM, theta=1e4)
    angles = cast(positions, dtype="f32")[..., None] * frequencies
    twice = concat(angles, angles, axis=-1)
    c, s = (cast(as_dtype(f(twice), "f32") * 0.5, dtype="bf16")[:, None] for f in (cos, sin))
    graph = graph_of(x * c + rotate_half(x) * s)
    lowered = run_pipeline(graph, EVERY, verify=True)
    found = {n.name: n.out_types[0].shape for n in lowered.graph.nodes}
    assert "concat" not in found
    assert found["cos"] == found["sin"] == (BATCH, TOKENS, DIM // 2)


def test_tables_that_all_sequences_share() -> None:
    x = leaf("x", *FIRST)
    c, s = (leaf(n, TOKENS, DIM // 2) for n in ("cos", "sin"))
    wide_c, wide_s = (concat(t, t, axis=-1)[None, None] for t in (c, s))
    assert attribute_of_rope(graph_of(x * wide_c + rotate_half(x) * wide_s)) is False


def test_heads_of_a_linear() -> None:
    """The reshape to heads and the one to pairs become one."""
    flat = leaf("flat", BATCH, TOKENS, HEADS * DIM)
    x = reshape(flat, shape=LAST)
    c, s = (beside(x, t) for t in tables(DIM // 2))
    two = reshape(x, shape=(*LAST[:3], DIM // 2, 2))
    a, b = two[..., 0], two[..., 1]
    both = (a * c - b * s)[..., None], (b * c + a * s)[..., None]
    assert attribute_of_rope(graph_of(reshape(concat(*both, axis=4), shape=LAST))) is True


class Angles(Layer):
    """A layer that makes its own angles."""

    signature = "x[batch, tokens, hidden], positions[batch, tokens]:i32 -> y[batch, tokens, hidden]"

    def __init__(self, config: Config) -> None:
        self.config = config
        self.inner = LlamaLayer(config)

    def forward(self, x: Value, positions: Value) -> Any:
        c = self.config
        table = rope_angles(positions, rotary_dim=c.head_dim, theta=c.theta)
        return self.inner(x, positions, *table)


class Stack(Model):
    """Several such layers in a loop."""

    signature = Angles.signature

    def __init__(self, config: Config) -> None:
        self.config = config
        self.layers = [Angles(config) for _ in range(config.layers)]

    def forward(self, x: Value, positions: Value) -> Any:
        for layer in self.layers:
            x = layer(x, positions)
        return x


@pytest.mark.parametrize("min_turns", ["2", "100"])
def test_angles_are_computed_once_a_step(min_turns: str) -> None:
    graph = trace(Stack(Config(hidden=16, layers=3, heads=2, kv_heads=1, head_dim=8, ffn=24)))
    lowered = run_pipeline(graph, PLAIN, {"roll": {"min_turns": min_turns}})
    assert names(lowered.graph).count("cos") == 1
    inner = [n.body for n in lowered.graph.nodes if n.name == "repeat" and n.body is not None]
    assert len(inner) == (min_turns == "2")
    assert all("cos" not in names(body) and "attention" in names(body) for body in inner)


X = leaf("x", *LAST)
COS, SIN = (leaf(n, BATCH, TOKENS, 1, DIM // 2) for n in ("cos", "sin"))


def miss_of(y: Any, rule: Any) -> tuple[str, Any]:
    found = only_miss(graph_of(y), rule)
    return found.reason, found.at


def test_tables_of_every_head() -> None:
    own = leaf("own", BATCH, TOKENS, HEADS, DIM // 2) * 1.5  # own
    a, b = X[..., :4], X[..., 4:]
    reason, at = miss_of(concat(a * own - b * SIN, b * own + a * SIN, axis=3),
                         rules.TurnedHalves())
    assert reason == (f"cos is {own.type}, wanted one row a token, [batch, tokens, 1, r] or "
                      "[batch, 1, tokens, r]")
    assert at == line_of("own", __file__)


def test_tables_of_two_shapes() -> None:
    x = leaf("x", 1, TOKENS, HEADS, DIM)
    c, s = leaf("cos", TOKENS, 1, 4), leaf("sin", 1, TOKENS, 1, 4) * 1.5  # second
    a, b = x[..., :4], x[..., 4:]
    reason, at = miss_of(concat(a * c - b * s, b * c + a * s, axis=3), rules.TurnedHalves())
    assert reason == f"cos is {c.type}, sin is {s.type}"
    assert at == line_of("second", __file__)


def test_a_part_of_other_width() -> None:
    a, b = (slice(X, axis=3, start=at, size=2) for at in (0, 2))
    c, s = (leaf(n, BATCH, TOKENS, 1, 2) for n in ("cos", "sin"))
    y = concat(a * c - b * s, b * c + a * s, X[..., 5:], axis=3)
    reason, _ = miss_of(y, rules.TurnedPart())
    assert reason == f"cos is {c.type}, wanted half of the 5 channels that are turned"


def test_tables_whose_halves_may_differ() -> None:
    wide = leaf("wide", BATCH, TOKENS, 1, DIM) * 1.5  # wide
    sines = concat(SIN, SIN, axis=3)
    reason, at = miss_of(wide * X + sines * concat(-X[..., 4:], X[..., :4], axis=3),
                         rules.RotateHalf())
    assert reason == "an operand is made by mul, wanted one made by concat"
    assert at == line_of("wide", __file__)


def test_other_cuts_than_pairs() -> None:
    x = X * 1.5  # cut
    three = reshape(x, shape=(BATCH, TOKENS, HEADS // 3, 8, 3))
    c, s = (leaf(n, BATCH, TOKENS, 1, 8) for n in ("cos", "sin"))
    a, b = (reshape(slice(three, axis=4, start=at, size=1), shape=three.shape[:4])
            for at in (0, 1))
    both = (a * c - b * s)[..., None], (b * c + a * s)[..., None]
    y = reshape(concat(*both, axis=4), shape=(BATCH, TOKENS, 2, 8))
    reason, at = miss_of(y, rules.TurnedPairs())
    assert reason == "x is cut to (batch, tokens, 1, 8, 3), wanted [.., heads, r, 2]"
    assert at == line_of("cut", __file__)


def test_columns_of_every_head() -> None:
    two = reshape(X, shape=(*LAST[:3], 4, 2))
    c, s = (leaf(n, *LAST[:3], 4, 1) for n in ("cos", "sin"))
    a, b = (slice(two, axis=4, start=at, size=1) for at in (0, 1))
    y = reshape(concat(a * c - b * s, b * c + a * s, axis=4), shape=LAST)
    assert miss_of(y, rules.TurnedColumns())[0] == f"cos is {c.type}, wanted one row a token"


def test_rope_that_leaves_channels() -> None:
    part = X[..., :6] * 1.0  # part
    turned = rules.rope(part[..., :6], *tables(2))
    whole = X * 1.5  # whole
    y = concat(rules.rope(slice(whole, axis=3, start=0, size=6), *tables(2)),
               slice(whole, axis=3, start=6, size=2), axis=3)
    reason, at = miss_of(y, rules.RopedPart())
    assert reason == "rope leaves 2 of the first 6 channels as they are"
    assert at == line_of("whole", __file__)
    assert turned.shape[-1] == 6


def test_what_is_rounded_to_another_dtype() -> None:
    wide = cast(leaf("x", *LAST, dtype="bf16"), dtype="f32")
    y = cast(rules.rope(wide, *tables(4)), dtype="f16")
    assert "it would make bf16" in miss_of(y, rules.WidenedRope())[0]


def test_each_rule_is_done_at_once() -> None:
    for maths, _ in TURNED.values():
        graph = graph_of(maths(leaf("x", *FIRST), *tables(DIM // 2)))
        after, fired, _missed = apply_rules(graph, [*rules.RULES, *views.RULES])
        assert fired
        assert_same(graph, after)
        assert not apply_rules(after, [*rules.RULES, *views.RULES])[1]
