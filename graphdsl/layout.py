"""How KV states lie in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from graphdsl.errors import Loc
from graphdsl.sizes import DTYPES, Dim, Size, add_sizes, size_value

BLOCKS, PAGES = Dim("blocks"), Dim("pages")
"""Of paged caches: the blocks of a pool, and the entries that a sequence has in the block table."""
TABLE = "block_table"
"""The name of the state [batch, pages] that paged caches share."""
ORDERS = ("bsnd", "bnsd", "sbnd")
POLICIES = ("contiguous", "paged", "shift")
STORAGES = ("int8", "nz")
LAYOUTS = (f"orders: {', '.join(ORDERS)}; then :paged/BLOCK or :shift; then "
           f":{' or :'.join(STORAGES)}: bnsd, bsnd:paged/16, bnsd:int8")
"""What a layout is written as, for whoever wrote another."""
MOST_SLOTS = 1 << 20
"""That a cache may have for a sequence, and so that a block may have."""
SCALE_BYTES = DTYPES["f32"]
NZ_WIDTH = 16


@dataclass(frozen=True)
class Layout:
    """How a KV state lies in memory; its logical shape is always bsnd.

    `order`: that of the axes batch, seq (slots), heads n and dim. `policy`: `contiguous` has slot p
    at p; `shift` has the last valid slot at the end, whatever the length; `paged` has a pool in
    which `block` slots lie together and a block table [batch, pages] that says which block holds
    slots [i * block, (i + 1) * block) of a sequence, so that b is the block and s the slot in it.
    `storage`: "" keeps the dtype; `int8` has rows of dim bytes followed by their f32 scale, which
    is that of one head and token; `nz` has tiles of 16 columns (Ascend). A `pinned` layout was
    asked for by the Layer, and no pass changes it; `loc` is the line of the cache.
    """

    order: str = "bsnd"
    policy: str = "contiguous"
    block: int = 0
    storage: str = ""
    pinned: bool = field(default=False, compare=False)
    loc: Loc | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        """`bnsd`, `bnsd:shift`, `bsnd:paged/16:int8`."""
        policy = f"paged/{self.block}" if self.policy == "paged" else self.policy
        parts = [self.order, policy if policy != "contiguous" else "", self.storage]
        return ":".join(part for part in parts if part)

    @staticmethod
    def parse(text: str) -> Layout:
        """The layout that `str` gives as `text`. Raises ValueError for text that it never gives."""
        order, *parts = text.split(":")
        storage = parts.pop() if parts and parts[-1] in STORAGES else ""
        policy, _, block = (parts.pop() if parts else "contiguous").partition("/")
        layout = Layout(order, policy, int(block) if block.isdecimal() else 0, storage)
        known = order in ORDERS and policy in POLICIES and (policy == "paged") == (layout.block > 0)
        known = known and layout.block <= MOST_SLOTS
        if not known or str(layout) != text:
            raise ValueError(f"no layout {text!r}")
        return layout

    @property
    def permutation(self) -> tuple[int, ...]:
        """Logical axis of every physical axis."""
        return tuple("bsnd".index(axis) for axis in self.order)

    @property
    def is_strided(self) -> bool:
        """Whether the logical rows are a strided view of the memory."""
        return self.policy == "contiguous" and not self.storage

    def physical(self, shape: tuple[Size, ...]) -> tuple[Size, ...]:
        """The shape in memory of a state of this logical shape [batch, slots, heads, dim]."""
        b, s, n, d = shape
        if self.policy == "paged":
            b, s = BLOCKS, self.block
        if self.storage == "nz":
            width = size_value(n, {}) * size_value(d, {})
            return (b, -(-width // NZ_WIDTH), s, NZ_WIDTH)
        if self.storage == "int8":
            d = add_sizes(d, SCALE_BYTES)
        return tuple((b, s, n, d)[axis] for axis in self.permutation)
