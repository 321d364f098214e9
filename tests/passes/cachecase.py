"""Small Layers around a KV cache, for the tests of its layouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from graphdsl.ir import Value
from graphdsl.layer import KVCache, Layer, Param
from graphdsl.models.llama import Config
from graphdsl.ops.attention import attention

SMALL = Config(vocab=29, hidden=16, layers=3, heads=4, kv_heads=2, head_dim=4, ffn=24)


@dataclass(frozen=True)
class Heads:
    heads: int = 2
    dim: int = 4


class Cached(Layer):
    """What the Layers of these tests share: x is appended as keys and values."""

    signature: ClassVar[str] = ("x[batch, tokens, heads, dim], positions[batch, tokens]:i32"
                                " -> y[batch, tokens, heads, dim]")

    def __init__(self, layout: str = "", **options: Any) -> None:
        self.config = Heads()
        self.options = options
        self.kv = KVCache(2, 4, layout=layout)  # cache


class Attends(Cached):
    """Attention with the options that it is made with; `positions=False` leaves them out."""

    def forward(self, x: Value, positions: Value) -> Value:
        options = dict(self.options)
        given = [positions] if options.pop("positions", True) else []
        kv = self.kv.append(x, x, positions)  # append
        y: Value = attention(x, kv.k, kv.v, *given, **options)  # attention
        return y


class AttendsTo(Cached):
    """Attention to the cache as it was, or by positions that are not those of the append."""

    signature: ClassVar[str] = ("x[batch, tokens, heads, dim], positions[batch, tokens]:i32,"
                                " others[batch, tokens]:i32 -> y[batch, tokens, heads, dim]")

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Value, positions: Value, others: Value) -> Value:
        old = self.kv
        new = old.append(x, x, positions)  # one append
        match self.what:
            case "old":
                y: Value = attention(x, old.k, old.v, positions)  # old
            case "others":
                y = attention(x, new.k, new.v, others)  # others
            case "twice":
                newer = new.append(x, x, others)
                y = attention(x, newer.k, newer.v, others)
        return y


class Keeps(Cached):
    """Attends and returns its cache, which Readers of any layout may read."""

    signature: ClassVar[str] = ("x[batch, tokens, heads, dim], positions[batch, tokens]:i32"
                                " -> y[batch, tokens, heads, dim], k[batch, slots, heads, dim],"
                                " v[batch, slots, heads, dim]")

    def forward(self, x: Value, positions: Value) -> tuple[Value, Value, Value]:
        kv = self.kv.append(x, x, positions)
        return attention(x, kv.k, kv.v, positions), kv.k, kv.v


class Later(Layer):
    """A Layer without a cache of its own."""

    signature: ClassVar[str] = (
        "x[batch, tokens, heads, dim], positions[batch, tokens]:i32,"
        " k[batch, slots, heads, dim], v[batch, slots, heads, dim]"
        " -> y[batch, tokens, heads, dim]")

    def __init__(self) -> None:
        self.config = Heads()
        self.scale = Param(4)

    def forward(self, x: Value, positions: Value, k: Value, v: Value) -> Value:
        y: Value = attention(x * self.scale, k, v, positions)
        return y


class Shares(Cached):
    """Layers after the first read its cache, by their own positions or by others."""

    signature: ClassVar[str] = AttendsTo.signature

    def __init__(self, same: bool = True) -> None:
        self.config = Heads()
        self.same = same
        self.first = Keeps()
        self.later = [Later() for _ in range(3)]

    def forward(self, x: Value, positions: Value, others: Value) -> Value:
        x, k, v = self.first(x, positions)
        for layer in self.later:
            x = layer(x, positions if self.same else others, k, v)
        return x


class Doubles(Cached):
    """Reads the keys as rows, in maths of its own, and attends to them too."""

    signature: ClassVar[str] = ("x[batch, tokens, heads, dim], positions[batch, tokens]:i32"
                                " -> y[batch, tokens, heads, dim], z[batch, slots, heads, dim]")

    def forward(self, x: Value, positions: Value) -> tuple[Value, Value]:
        kv = self.kv.append(x, x, positions)
        return attention(x, kv.k, kv.v, positions), kv.k + kv.k  # rows


class FirstRow(Cached):
    """Adds the keys of the first token, which it reads as a row."""

    def forward(self, x: Value, positions: Value) -> Value:
        kv = self.kv.append(x, x, positions)
        return attention(x, kv.k, kv.v, positions) + kv.k[:, :1]  # first row


class Stack(Cached):
    """Three of them, one after the other."""

    def __init__(self) -> None:
        self.config = Heads()
        self.layers = [FirstRow() for _ in range(3)]

    def forward(self, x: Value, positions: Value) -> Value:
        for layer in self.layers:
            x = layer(x, positions)
        return x


class Present(Cached):
    """Returns its keys."""

    signature: ClassVar[str] = ("x[batch, tokens, heads, dim], positions[batch, tokens]:i32"
                                " -> keys[batch, slots, heads, dim]")

    def forward(self, x: Value, positions: Value) -> Value:
        return self.kv.append(x, x, positions).k  # present


class Two(Cached):
    """Attends to keys of one cache and values of another."""

    def __init__(self, first: str = "", second: str = "") -> None:
        super().__init__(first)
        self.other = KVCache(2, 4, layout=second)  # other cache

    def forward(self, x: Value, positions: Value) -> Value:
        keys = self.kv.append(x, x, positions).k  # keys
        values = self.other.append(x, x, positions).v  # values
        y: Value = attention(x, keys, values, positions)  # both
        return y


class Reader(Layer):
    """Attends to a cache of a layout that it names."""

    signature: ClassVar[str] = (
        "x[batch, tokens, heads, dim], positions[batch, tokens]:i32,"
        " k[batch, slots, heads, dim]@bnsd:paged/4, v[batch, slots, heads, dim]@bnsd:paged/4"
        " -> y[batch, tokens, heads, dim]")

    def __init__(self, config: Heads = Heads()) -> None:
        self.config = config

    def forward(self, x: Value, positions: Value, k: Value, v: Value) -> Value:  # reader
        y: Value = attention(x, k, v, positions)
        return y


class Reads(Cached):
    """Hands its cache to a Reader."""

    def __init__(self, layout: str = "") -> None:
        super().__init__(layout)
        self.reader = Reader()

    def forward(self, x: Value, positions: Value) -> Value:
        kv = self.kv.append(x, x, positions)  # written
        y: Value = self.reader(x, positions, kv.k, kv.v)  # read
        return y


class Gives(Cached):
    """Returns its keys in a layout that its signature names."""

    signature: ClassVar[str] = ("x[batch, tokens, heads, dim], positions[batch, tokens]:i32"
                                " -> y[batch, tokens, heads, dim],"
                                " keys[batch, slots, heads, dim]@sbnd")

    def forward(self, x: Value, positions: Value) -> tuple[Value, Value]:  # gives
        return x, self.kv.append(x, x, positions).k  # given
