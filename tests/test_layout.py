"""Layouts as text, as shapes in memory, and in signatures."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from graphdsl import GraphError, operation
from graphdsl.ir import TensorType
from graphdsl.layer import BATCH, SLOTS
from graphdsl.layout import BLOCKS, ORDERS, Layout
from graphdsl.op import kernel
from graphdsl.signature import parse_signature, parse_terms

SHAPE = (BATCH, SLOTS, 3, 8)
PARTS = [("contiguous", 0), ("shift", 0), ("paged", 1), ("paged", 16)]
LAYOUTS = [Layout(order, policy, block, storage) for order, (policy, block), storage
           in itertools.product(ORDERS, PARTS, ("", "int8", "nz"))]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_text(layout: Layout) -> None:
    assert Layout.parse(str(layout)) == layout
    assert str(TensorType(SHAPE, "f32", layout)) == f"f32[batch, slots, 3, 8]@{layout}"


@pytest.mark.parametrize(("text", "layout"), [
    ("bsnd", Layout()), ("sbnd", Layout("sbnd")), ("bnsd:shift", Layout("bnsd", "shift")),
    ("bsnd:paged/16", Layout("bsnd", "paged", 16)),
    ("bnsd:int8", Layout("bnsd", storage="int8")),
    ("bsnd:paged/2:nz", Layout("bsnd", "paged", 2, "nz"))])
def test_parsed(text: str, layout: Layout) -> None:
    assert Layout.parse(text) == layout
    assert str(layout) == text


@pytest.mark.parametrize("text", [
    "", "dnsb", "BSND", "bsnd:", "bsnd:ring", "bsnd:paged", "bsnd:paged/", "bsnd:paged/0",
    "bsnd:paged/-1", "bsnd:paged/x", "bsnd:shift/4", "bsnd:contiguous/4", "bsnd:int4",
    "bsnd:int8:shift", "bsnd:shift:int8:nz", "paged/16", "bsnd :shift", "bsnd:paged/\u0663",
    "bsnd:paged/016", "bsnd:paged/1048577", "bsnd:contiguous"])
def test_what_is_no_layout(text: str) -> None:
    with pytest.raises(ValueError, match="no layout"):
        Layout.parse(text)


@pytest.mark.parametrize(("text", "shape"), [
    ("bsnd", (BATCH, SLOTS, 3, 8)), ("bnsd", (BATCH, 3, SLOTS, 8)), ("sbnd", (SLOTS, BATCH, 3, 8)),
    ("bnsd:shift", (BATCH, 3, SLOTS, 8)), ("bsnd:paged/16", (BLOCKS, 16, 3, 8)),
    ("bnsd:paged/4", (BLOCKS, 3, 4, 8)), ("sbnd:paged/4", (4, BLOCKS, 3, 8)),
    ("bsnd:int8", (BATCH, SLOTS, 3, 12)), ("bnsd:paged/2:int8", (BLOCKS, 3, 2, 12)),
    ("bnsd:nz", (BATCH, 2, SLOTS, 16)), ("bsnd:paged/4:nz", (BLOCKS, 2, 4, 16))])
def test_shape_in_memory(text: str, shape: tuple[Any, ...]) -> None:
    assert Layout.parse(text).physical(SHAPE) == shape


@pytest.mark.parametrize(("text", "stored"), [
    ("bsnd", "bf16"), ("bsnd:paged/4", "bf16"), ("bsnd:int8", "int8"), ("bsnd:nz", "bf16")])
def test_dtype_in_memory(text: str, stored: str) -> None:
    assert TensorType(SHAPE, "bf16", Layout.parse(text)).stored == stored


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_which_layouts_are_strides(layout: Layout) -> None:
    assert layout.is_strided == (layout.policy == "contiguous" and not layout.storage)
    logical = [(BATCH, SLOTS, 3, 8)[axis] for axis in layout.permutation]
    assert not layout.is_strided or list(layout.physical(SHAPE)) == logical


def test_a_pin_and_a_line_are_no_part_of_a_layout() -> None:
    assert Layout(pinned=True) == Layout()
    assert hash(Layout(pinned=True)) == hash(Layout())


@pytest.mark.parametrize("text", [
    "k[batch, slots, heads, dim]@bnsd", "k[batch, slots, heads, dim]:bf16@bsnd:paged/16:int8"])
def test_signature(text: str) -> None:
    (term,) = parse_terms(text)
    assert str(term) == text
    assert term.layout == Layout.parse(text.split("@")[1])
    both = parse_signature(f"x[batch, hidden], {text} -> {text}, y[batch, hidden]")
    assert str(both) == f"x[batch, hidden], {text} -> {text}, y[batch, hidden]"
    assert [t.layout for t in both.inputs] == [None, term.layout]


@pytest.mark.parametrize(("text", "message", "hint"), [
    ("k[b, s, n, d]@dnsb", "signature: no layout 'dnsb'", "orders: bsnd, bnsd, sbnd"),
    ("k[b, s, n, d]@", "signature: no layout ''", "bsnd:paged/16"),
    ("k[b, s, n, d]@bsnd:paged", "signature: no layout 'bsnd:paged'", ":paged/BLOCK"),
    ("k[b, s, d]@bsnd", "signature: k[b, s, d]@bsnd has 3 axes", "[batch, slots, kv_heads"),
    ("k[b, s, n, d]@bsnd:f32", "signature: no layout 'bsnd:f32'", "orders"),
    ("k@bsnd[b, s, n, d]", "signature: cannot read 'k@bsnd[b, s, n, d]'", "write x[")])
def test_signatures_that_name_no_layout(text: str, message: str, hint: str) -> None:
    with pytest.raises(GraphError) as caught:
        parse_signature(f"{text} -> y[b, s]")
    assert caught.value.message == message
    assert hint in caught.value.hint


@pytest.mark.parametrize("decorator", [operation, kernel])
def test_ops_take_any_layout(decorator: Any) -> None:
    with pytest.raises(GraphError, match=r"an op takes caches of any layout, not k\[.*@bnsd"):
        decorator("k[b, s, n, d]@bnsd -> y[b, s, n, d]")
