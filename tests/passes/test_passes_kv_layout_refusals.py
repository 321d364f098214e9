"""What no layout allows is refused, with the lines of the writer and of the reader."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cachecase
import pytest
from cachecase import (
    Attends,
    AttendsTo,
    Doubles,
    Gives,
    Present,
    Reader,
    Reads,
    Shares,
    Two,
)
from passcase import CPU, WHOLE, graph_of, leaf, line_of

from graphdsl.errors import GraphError, Loc
from graphdsl.ir import Dim, Graph, Layout, TensorType, Value
from graphdsl.layer import BATCH, SLOTS, KVCache, Layer, trace
from graphdsl.op import kernel
from graphdsl.ops.kv import kv_append
from graphdsl.passes.kv_layout import KVLayout
from graphdsl.passes.pipeline import run_pipeline

TOKENS = Dim("tokens")
PAGED = {"policy": "paged"}


def line(marker: str) -> Loc:
    return line_of(marker, cachecase.__file__)


def refusal(layer: Layer | Graph, options: dict[str, str] | None = None,
            target: Any = CPU) -> GraphError:
    """What the pipeline says of a Layer with these options of kv_layout."""
    with pytest.raises(GraphError) as caught:
        run_pipeline(trace(layer), target, {"kv_layout": options or {}})
    return caught.value


@pytest.mark.parametrize(("options", "message", "hint"), [
    ({"block": "8"}, "block=8: only paged caches have blocks", "policy=paged,block=8"),
    ({"block": "8", "policy": "shift"}, "only paged caches have blocks", "policy=paged,block=8"),
    ({"block": "0", **PAGED}, "block=0: a block has at least 1 slot", "the default is 16"),
    ({"block": "-4", **PAGED}, "block=-4: a block has at least 1 slot", "the default is 16"),
    ({"block": "1048577", **PAGED}, "a block has at most 1048576 slots", "the default is 16")])
def test_blocks(options: dict[str, str], message: str, hint: str) -> None:
    error = refusal(Attends(), options)
    assert message in error.message
    assert hint in error.hint


@pytest.mark.parametrize(("key", "value"), [
    ("order", "bnsd"), ("policy", "contiguous"), ("policy", "shift"), ("storage", "int8"),
    ("block", "8")])
def test_an_option_against_a_pin(key: str, value: str) -> None:
    options = {key: value} | (PAGED if key == "block" else {})
    error = refusal(Attends("sbnd:paged/4"), options)
    assert error.loc == line("cache")
    assert error.message == (f"--pass kv_layout:{key}={value}: kv.k is pinned to sbnd:paged/4")
    assert error.hint == "leave the option out, or the layout of the KVCache"


@pytest.mark.parametrize(("layout", "options"), [
    ("", {"storage": "nz"}), ("bnsd:nz", {})])
def test_a_storage_that_the_backend_lacks(layout: str, options: dict[str, str]) -> None:
    error = refusal(Attends(layout), options)
    assert error.message == "the cpu backend has no nz storage"
    assert error.hint == "storages: that of the dtype, int8"
    assert error.loc == line("cache")


@pytest.mark.parametrize("policy", ["paged", "shift"])
def test_a_policy_that_the_backend_lacks(policy: str) -> None:
    error = refusal(Attends(), {"policy": policy}, WHOLE)
    assert error.message == f"the whole backend has no {policy} caches"
    assert error.hint == "policies: contiguous"
    assert error.loc == line("cache")


def test_an_input_of_a_layout_that_the_backend_lacks() -> None:
    error = refusal(Reader(), target=WHOLE)
    assert error.message == "the whole backend has no paged caches"
    assert error.loc == line("reader")


def test_blocks_of_two_sizes() -> None:
    error = refusal(Two("bnsd:paged/4", "bnsd:paged/8"))
    assert error.message == (f"kv.k has blocks of 4 (made at {line('cache')}) and other.k of 8: "
                             "they share one block table")
    assert error.loc == line("other cache")
    assert "same block size" in error.hint


@pytest.mark.parametrize(("second", "shown"), [("bsnd", "@bsnd"), ("sbnd:int8", "@sbnd:int8"),
                                               ("", "@bnsd")])
def test_keys_and_values_of_two_layouts(second: str, shown: str) -> None:
    error = refusal(Two("sbnd", second))
    assert error.loc == line("both")
    assert error.message == (
        f"attention: k is f32[batch, slots, 2, 4]@sbnd, written at {line('keys')}, and v is "
        f"f32[batch, slots, 2, 4]{shown}, written at {line('values')}")


@pytest.mark.parametrize(("policy", "reason"), [
    ("paged", "it may read pages that have no block yet"),
    ("shift", "it cannot tell where rows lie")])
@pytest.mark.parametrize(("options", "lacks"), [
    ({"positions": False}, "has no positions"), ({"causal": False}, "is not causal")])
def test_attention_that_does_not_say_what_is_there(options: Any, lacks: str, policy: str,
                                                   reason: str) -> None:
    error = refusal(Attends(**options), {"policy": policy})
    assert error.loc == line("attention")
    assert lacks in error.message
    assert reason in error.message
    assert "positions and causal=True" in error.hint
    run_pipeline(trace(Attends(**options)), CPU, {"kv_layout": {"storage": "int8"}}, verify=True)


@pytest.mark.parametrize(("what", "reason"), [
    ("old", "before the tokens of its positions are appended"),
    ("others", "by other positions than were appended")])
def test_a_cache_that_shifts_is_read_by_its_last_append(what: str, reason: str) -> None:
    error = refusal(AttendsTo(what), {"policy": "shift"})
    assert error.loc == line(what)
    assert reason in error.message
    assert what != "others" or f"written at {line('one append')}" in error.message
    for policy in ("contiguous", "paged"):
        run_pipeline(trace(AttendsTo(what)), CPU, {"kv_layout": {"policy": policy}})


@pytest.mark.parametrize("target", [CPU, replace(WHOLE, kv_policies=CPU.kv_policies)])
def test_layers_that_read_a_shifting_cache_by_other_positions(target: Any) -> None:
    assert "by other positions than were appended" in refusal(
        Shares(same=False), {"policy": "shift"}, target).message


@pytest.mark.parametrize(("layer", "marker"), [(Doubles, "rows"), (Present, "present")])
def test_rows_of_a_cache_that_shifts(layer: Any, marker: str) -> None:
    error = refusal(layer(), {"policy": "shift"})
    assert error.loc == line(marker)
    assert "whose rows move with every append" in error.message
    assert f"the KVCache at {line('cache')}" in error.hint


@pytest.mark.parametrize(("layout", "why"), [
    ("", f"k, written at {line('written')}, is a KV cache whose layout is still to be chosen"),
    ("bnsd", f"k is f32[batch, slots, 2, 4]@bnsd, written at {line('written')}"),
    ("bnsd:paged/8",
     f"k is f32[batch, slots, 2, 4]@bnsd:paged/8, written at {line('written')}")])
def test_a_reader_of_another_layout(layout: str, why: str) -> None:
    with pytest.raises(GraphError) as caught:
        trace(Reads(layout))
    assert caught.value.loc == line("read")
    assert caught.value.message == (f"Reader: {why}; Reader ({line('reader')}) takes "
                                    "k[batch, slots, heads, dim]@bnsd:paged/4")
    assert caught.value.hint == 'KVCache(..., layout="bnsd:paged/4")'


def test_a_reader_of_what_is_no_cache() -> None:
    with pytest.raises(GraphError, match=r"k is f32.*, which is no KV cache; Reader"):
        trace(NoCache())


class NoCache(Reads):
    """Hands rows of its own to the Reader, whose slots are tokens then."""

    signature = ("x[batch, slots, heads, dim], positions[batch, slots]:i32"
                 " -> y[batch, slots, heads, dim]")

    def __init__(self) -> None:
        super().__init__("bnsd:paged/4")

    def forward(self, x: Value, positions: Value) -> Value:
        y: Value = self.reader(x, positions, x, x)
        return y


def test_a_result_of_another_layout() -> None:
    with pytest.raises(GraphError) as caught:
        trace(Gives("bnsd"))
    assert caught.value.loc == line("given")
    assert caught.value.message == (
        f"Gives: keys is f32[batch, slots, 2, 4]@bnsd, written at {line('given')}; the signature "
        f"({line('gives')}) promises keys[batch, slots, heads, dim]@sbnd")


def test_an_unknown_layout_of_a_cache() -> None:
    with pytest.raises(GraphError, match="KVCache: no layout 'dnsb'") as caught:
        KVCache(2, 4, layout="dnsb")  # unknown
    assert caught.value.loc == line_of("unknown", __file__)
    assert "orders: bsnd, bnsd, sbnd" in caught.value.hint


def cache(name: str, *shape: Any, kind: str = "state") -> Value:
    return Value(TensorType(shape, "f32", Layout()), name=name, kind=kind)


X = leaf("x", BATCH, TOKENS, 2, 4)
POSITIONS = leaf("positions", BATCH, TOKENS, dtype="i32")


@pytest.mark.parametrize("name", ["pages", "blocks"])
def test_a_size_that_is_called_as_one_of_paged_caches(name: str) -> None:
    kv, own = cache("kv", BATCH, SLOTS, 2, 4), leaf("own", Dim(name), 4)
    graph = graph_of(own + own, kv_append(kv, X, POSITIONS), state=(kv,))
    error = refusal(graph, PAGED)
    assert error.message == (f"test: own is f32[{name}, 4], but {name} is what a size of paged "
                             "caches is called")
    assert error.hint == "rename it"
    run_pipeline(graph, CPU, {"kv_layout": {"policy": "shift"}})


@pytest.mark.parametrize(("taken", "what"), [("", "input"), ("param", "param"),
                                             ("state", "state")])
def test_a_name_that_is_taken(taken: str, what: str) -> None:
    kv = cache("kv", BATCH, SLOTS, 2, 4)
    other = leaf("block_table", 3, 3, kind=taken)
    state = (kv, other) if taken == "state" else (kv,)
    outputs = (leaf("y", 3, 3) + other, kv_append(kv, X, POSITIONS))
    graph = graph_of(*outputs, *((other,) if taken == "state" else ()), state=state)
    error = refusal(graph, PAGED)
    assert error.message == (f"test has a leaf of its own, the {what} block_table, which is what "
                             "the block table of paged caches is called")
    assert error.hint == "rename it"


def test_caches_of_two_batch_sizes() -> None:
    first, second = cache("a", BATCH, SLOTS, 2, 4), cache("b", 3, SLOTS, 2, 4)
    x, at = leaf("y", 3, TOKENS, 2, 4), leaf("at", 3, TOKENS, dtype="i32")
    graph = graph_of(kv_append(first, X, POSITIONS), kv_append(second, x, at),
                     state=(first, second))
    error = refusal(graph, PAGED)
    assert error.message == ("paged caches of batch and of 3 sequences: they share one block "
                             "table")


def test_an_input_is_only_read() -> None:
    kv = cache("kv", BATCH, SLOTS, 2, 4, kind="")
    new = kv_append(kv, X, POSITIONS)  # writes
    error = refusal(graph_of(new + new))
    assert error.loc == line_of("writes", __file__)
    assert error.message == "kv_append writes into kv, which is an input and is only read"


@kernel("cache[b, s, g, d] -> y[b, s, g, d]", infer=lambda types, attrs: (types[0],),
        aliases=((0, 0),))
def scaled(cache: Any) -> Any:
    """A kernel of the user's that overwrites a cache."""
    return cache * 2


def test_a_writer_that_knows_rows_alone() -> None:
    kv = cache("kv", BATCH, SLOTS, 2, 4)
    graph = graph_of(scaled(kv), state=(kv,))  # scaled
    assert KVLayout("sbnd").run(graph, CPU).graph.outputs[0].type.layout == Layout("sbnd")
    for options in (PAGED, {"policy": "shift"}, {"storage": "int8"}):
        error = refusal(graph, options, replace(CPU, takes=CPU.takes | {"scaled"}))
        assert error.loc == line_of("scaled", __file__)
        assert "scaled writes into f32[batch, slots, 2, 4]@bnsd" in error.message
