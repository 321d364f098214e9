"""Rules for attention: recognised from plain maths, then freed of repeated heads and of masks that
its positions and window stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graphdsl.ir import Value
from graphdsl.ops.attention import attention
from graphdsl.ops.math import logical_and, where
from graphdsl.ops.shape import arange, expand, repeat_interleave, transpose
from graphdsl.passes import weighted
from graphdsl.passes.masks import KEYS, TOKENS, Condition, Form, Mask, Reader, Term, placed
from graphdsl.passes.match import NoMatch
from graphdsl.passes.rules import Rule
from graphdsl.passes.views import LocalRule, Site


def _operands(site: Site) -> dict[str, Value]:
    """The operands of an attention by name."""
    names = site.node.op.present(len(site.inputs), site.attr)
    return dict(zip(names, site.inputs, strict=True))


def _changed(site: Site, operands: Mapping[str, Value | None] | None = None,
             **attrs: Any) -> Sequence[Value]:
    """The attention with other operands or attributes; None leaves one out."""
    kept = {n: v for n, v in site.attr.items() if n != "given"}
    y: Value = attention(**{**_operands(site), **(operands or {})}, **{**kept, **attrs})
    return [y]


class CacheAsItLies(LocalRule):
    """k and v that are turned and turned back are read where they lie: in a KV cache, whose layout
    is a part of its type."""

    roots = (attention,)
    needs = frozenset((transpose,))
    shapes = "q[b, t, 4, 8], k[b, s, 2, 8], v[b, s, 2, e]"

    @staticmethod
    def before(q: Value, k: Value, v: Value) -> Any:
        there, back = (0, 2, 3, 1), (0, 3, 1, 2)
        keys, values = (transpose(transpose(x, order=there), order=back) for x in (k, v))
        return attention(q, keys, values, causal=False)

    def rewritten(self, site: Site) -> Sequence[Value]:
        given = _operands(site)
        lying = {name: _turned_back(site, given[name]) for name in "kv"}
        if lying == {name: given[name] for name in "kv"}:
            raise NoMatch("neither k nor v is turned and turned back")
        return _changed(site, lying)


def _turned_back(site: Site, x: Value) -> Value:
    """What two transposes were made of that undo one another; x itself where there are none."""
    outer = x.node
    if outer is None or outer.op is not transpose:
        return x
    inner = site.overlay.inputs(outer)[0].node
    if inner is None or inner.op is not transpose:
        return x
    order = [inner.attr["order"][axis] for axis in outer.attr["order"]]
    return site.overlay.inputs(inner)[0] if order == sorted(order) else x


class SharedHeads(LocalRule):
    """k and v that are repeated for the heads which share them are read once."""

    roots = (attention,)
    shapes = "q[b, t, 4, 8], k[b, s, 2, 8], v[b, s, 2, e], one[b, s, 1, 8], mask[t, s]:f32"

    @staticmethod
    def before(q: Value, k: Value, v: Value, one: Value, mask: Value) -> Any:
        keys, values = (repeat_interleave(x, n=2, axis=-2) for x in (k, v))
        alone = expand(one, shape=(*one.shape[:2], 4, 8))
        return attention(q, keys, values, causal=False), attention(q, alone, alone, mask=mask)

    def rewritten(self, site: Site) -> Sequence[Value]:
        given = _operands(site)
        k, v = given["k"], given["v"]
        thin = {name: _shared(site, given[name]) for name in "kv"}
        if thin["k"] is k and thin["v"] is v:
            raise NoMatch("neither k nor v is repeated")
        site.require(thin["k"].shape[2] == thin["v"].shape[2],
                     f"k is repeated from {thin['k'].type}, v from {thin['v'].type}", v)
        return _changed(site, thin)


def _shared(site: Site, x: Value) -> Value:
    """What the heads of x, [b, s, h, d], are repeated from; x itself where they are not."""
    node = x.node
    if node is None or node.op not in (repeat_interleave, expand):
        return x
    source = site.overlay.inputs(node)[0]
    is_repeat = node.op is repeat_interleave and node.attr["axis"] % 4 == 2
    is_expand = node.op is expand and (*source.shape[:2], source.shape[3]) == (
        *x.shape[:2], x.shape[3])
    return source if is_repeat or is_expand else x


def _mask_of(site: Site) -> tuple[Value, Mask]:
    """The mask of an attention, and what it says. Raises NoMatch if it has none."""
    mask = _operands(site).get("mask")
    if mask is None:
        raise NoMatch("it has no mask")
    return mask, Reader(site.overlay).mask(mask)


class BoolMask(LocalRule):
    """A mask that adds 0 to the score of a key that is seen and a large negative number to that of
    another is the bool of what is seen."""

    roots = (attention,)
    shapes = "q[b, t, 4, 8], k[b, 40, 2, 8], v[b, 40, 2, e], seen[t, 40]:bool"

    @staticmethod
    def before(q: Value, k: Value, v: Value, seen: Value) -> Any:
        return (attention(q, k, v, mask=where(seen, 0.0, -1e9), causal=False),
                attention(q, k, v, mask=where(seen, float("-inf"), 0.0), causal=False))

    def rewritten(self, site: Site) -> Sequence[Value]:
        mask, read = _mask_of(site)
        if mask.dtype == "bool" or not read.conditions:
            raise NoMatch("the mask is no choice")
        site.require(not read.added, "the mask is a bias too", mask)
        keys = _operands(site)["k"].shape[1:2]
        site.require(mask.shape[-1:] == keys, f"the mask is {mask.type} and does not tell keys "
                     "apart", mask)
        return _changed(site, {"mask": read.value})


class CausalMask(LocalRule):
    """Keys up to a query's position, or token, are what a causal attention sees."""

    roots = (attention,)
    needs = frozenset((arange,))
    shapes = "q[b, 3, 4, 8], k[b, 9, 2, 8], v[b, 9, 2, e], positions[b, 3]:i32, bias[3, 9]"

    @staticmethod
    def before(q: Value, k: Value, v: Value, positions: Value, bias: Value) -> Any:
        keys, rows = arange(size=9), positions[:, None, :, None]
        tokens = arange(size=3)[:, None]
        return (attention(q, k, v, mask=keys <= rows, causal=False),
                attention(q, k, v, mask=where(rows < keys, -1e9, bias), causal=False),
                attention(q, k, v, mask=tokens - keys + 1 > 0, causal=False))

    def rewritten(self, site: Site) -> Sequence[Value]:
        mask, read = _mask_of(site)
        if site.attr["causal"]:
            raise NoMatch("it is causal")
        for condition, (leaf, axes) in _upper_bounds(read):
            rows = {} if leaf is None else {"positions": _rows(leaf, axes, site)}
            site.require(rows.get("positions") is _operands(site).get("positions")
                         or "positions" not in _operands(site), "it has other positions", mask)
            return _changed(site, {"mask": read.without(condition).value, **rows}, causal=True)
        site.require(not read.conditions, "no condition of the mask is key <= position", mask)
        raise NoMatch("the mask has no conditions")


def _upper_bounds(mask: Mask) -> list[tuple[Condition, Term]]:
    """The conditions key <= position of a mask, and what the position is."""
    return [(c, term) for c in mask.conditions
            if c.form and c.form.const == 0 and (term := _bound(c.form, 1))]


def _bound(form: Form, sign: int) -> Term | None:
    """What the position is in sign * (position - key) + constant; None for other forms."""
    terms = dict(form.terms)
    if terms.pop((None, (KEYS,)), 0) != -sign or list(terms.values()) != [sign]:
        return None
    (leaf, axes), = terms
    return (leaf, axes) if set(axes) <= ({TOKENS} if leaf is None else {0, TOKENS}) else None


def _rows(leaf: Value, axes: tuple[int, ...], site: Site) -> Value:
    """A leaf that tells positions as [batch, tokens]."""
    shape = _operands(site)["q"].shape[:2]
    rows = placed(leaf, axes).at((0, TOKENS))
    wide: Value = rows if rows.shape == shape else expand(rows, shape=shape)
    return wide


class WindowMask(LocalRule):
    """The last keys before a query's position are the window of a causal attention."""

    roots = (attention,)
    needs = frozenset((arange,))
    shapes = "q[b, 3, 4, 8], k[b, 9, 2, 8], v[b, 9, 2, e], positions[b, 3]:i32"

    @staticmethod
    def before(q: Value, k: Value, v: Value, positions: Value) -> Any:
        keys, rows = arange(size=9), positions[:, None, :, None]
        tokens = arange(size=3)[:, None]
        return (attention(q, k, v, positions, logical_and(keys > rows - 3, keys < 8)),
                attention(q, k, v, mask=tokens - keys < 2))

    def rewritten(self, site: Site) -> Sequence[Value]:
        mask, read = _mask_of(site)
        positions = _operands(site).get("positions")
        own = (Form({(None, (TOKENS,)): 1}) if positions is None
               else Reader(site.overlay).form(positions, (0, TOKENS)))
        if not site.attr["causal"] or site.attr["window"]:
            raise NoMatch("it is not causal, or has a window")
        for condition in (c for c in read.conditions if c.form):
            behind = condition.form.plus(own) if condition.form else own
            if (behind.terms == {(None, (KEYS,)): 1} and isinstance(behind.const, int)
                    and behind.const >= 0):
                return _changed(site, {"mask": read.without(condition).value},
                                window=behind.const + 1)
        site.require(not any(c.form and (None, (KEYS,)) in c.form.terms for c in read.conditions),
                     "no condition of the mask is key > position - window", mask)
        raise NoMatch("no condition of the mask is about keys")


RULES: tuple[Rule, ...] = (
    *weighted.RULES, CacheAsItLies(), SharedHeads(), BoolMask(), CausalMask(), WindowMask())
