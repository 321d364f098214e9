"""What ATB demands of attention and of what writes caches, and the shapes they make."""

from __future__ import annotations

from graphdsl.ir import Size, scaled

from .checks_call import Call
from .checks_sizes import Shape, Shapes, divided, is_multiple, same, same_shape, text
from .tables import (
    COMPRESSED,
    COMPRESSED_MASKS,
    FA_HIDDEN,
    NZ_WIDTH,
    PAGED_DIM,
    PAGED_WIDE_BLOCK,
    PAGED_WIDE_DIM,
    SLIDING_MASKS,
    SLOPED_MASKS,
)


def self_attention(call: Call) -> Shapes:
    heads, kv_heads = _heads(call)
    paged = call.choice("calcType") == "PA_ENCODER"
    _check_mask_fields(call, paged)
    if paged:
        return _encoder(call, heads, kv_heads)
    return _contiguous(call, heads, kv_heads)


def _heads(call: Call) -> tuple[int, int]:
    heads = call.number("headNum")
    kv_heads = call.number("kvHeadNum") or heads
    if heads < 1:
        raise call.field_wrong("headNum", "at least 1")
    if kv_heads < 1 or heads % kv_heads:
        raise call.field_wrong("kvHeadNum", f"a divisor of {heads}, the headNum")
    return heads, kv_heads


def _check_mask_fields(call: Call, paged: bool) -> None:
    mask, window = call.choice("maskType"), call.number("windowSize")
    tiled = call.has("mask") and call.tensor("mask").format == "nz"
    if tiled and call.rank("mask", 4)[3] != NZ_WIDTH:
        raise call.wrong("mask", f"[sequences, columns / {NZ_WIDTH}, rows, {NZ_WIDTH}] in NZ")
    if paged and call.choice("kvcacheCfg") == "K_BYPASS_V_BYPASS":
        raise call.field_wrong("kvcacheCfg", "K_CACHE_V_CACHE: PA_ENCODER has no cache to bypass")
    if call.fields["isTriuMask"] and not call.has("mask"):
        raise call.field_wrong("isTriuMask", "0, as there is no mask", "set maskType")
    if mask in COMPRESSED_MASKS and not paged:
        raise call.field_wrong("maskType", "a mask that is not compressed: those are for "
                               "PA_ENCODER", "MASK_TYPE_NORM has a value for each key")
    if (window > 0) != (mask in SLIDING_MASKS):
        raise call.field_wrong("windowSize", "more than 0 with a sliding mask and 0 without: "
                               f"maskType is {mask}", f"sliding: {', '.join(SLIDING_MASKS)}")


def _encoder(call: Call, heads: int, kv_heads: int) -> Shapes:
    q = call.rank("q", 2, 3)
    for name in "kv":
        call.rank(name, 2, 3)
        if len(call.seen(name)) != len(q):
            raise call.wrong(name, f"{len(q)} axes, as q has")
        if not same(call.seen(name)[0], q[0]):
            raise call.wrong(name, f"{q[0]} rows, as q has")
    dim, key_dim = _dim(call, "q", heads), _dim(call, "k", kv_heads)
    if dim != key_dim:
        raise call.wrong("k", f"{kv_heads} heads of {dim}, as q has")
    value_dim = _dim(call, "v", kv_heads)
    call.rank("seqLen", 1, 2)
    if call.has("mask"):
        _check_encoder_mask(call)
    if call.choice("maskType") in SLOPED_MASKS and not same_shape(call.seen("slopes"), (heads,)):
        raise call.wrong("slopes", f"the shape [{heads}], one for each head")
    return ((q[0], heads, value_dim) if len(q) == 3 else (q[0], heads * value_dim),)


def _dim(call: Call, name: str, heads: int) -> int:
    """The dim of the heads of [rows, heads * dim], [rows, heads, dim] or [b, s, heads, dim]."""
    shape = call.seen(name)
    if len(shape) > 2:
        if shape[-2] != heads:
            raise call.wrong(name, f"{heads} heads in the last axis but one")
        return call.known(name, -1)
    if call.known(name, 1) % heads:
        raise call.wrong(name, f"a last size that {heads}, its heads, divides")
    return call.known(name, 1) // heads


def _check_encoder_mask(call: Call) -> None:
    if call.choice("maskType") != "MASK_TYPE_NORM_COMPRESS":
        return
    square: Shape = (COMPRESSED, COMPRESSED)
    if call.soc == "310p":
        square = (1, COMPRESSED // NZ_WIDTH, COMPRESSED, NZ_WIDTH)
    in_nz = call.tensor("mask").format == "nz"
    if not same_shape(call.seen("mask"), square) or in_nz != (call.soc == "310p"):
        raise call.wrong("mask", f"the compressed mask {text(square)}"
                         + (" in NZ" if call.soc == "310p" else ""))


def _contiguous(call: Call, heads: int, kv_heads: int) -> Shapes:
    q = call.rank("q", 2, 4)
    dim = _dim(call, "q", heads)
    batch = call.rank("seqLen", 1)[0]
    value_dim = divided(_cache_width(call, "cacheV"), kv_heads)
    if not isinstance(value_dim, int):
        raise call.wrong("cacheV", f"a width that {kv_heads}, the kvHeadNum, divides")
    if not same(_cache_width(call, "cacheK"), kv_heads * dim):
        raise call.wrong("cacheK", f"a width of {kv_heads * dim}: {kv_heads} heads of {dim}")
    for name in (name for name in "kv" if call.has(name)):
        _check_new_rows(call, name, kv_heads, dim if name == "k" else value_dim)
    for name in ("q", *(name for name in "kv" if call.has(name))):
        width = _dim(call, name, heads if name == "q" else kv_heads)
        if width * (heads if name == "q" else kv_heads) % FA_HIDDEN:
            raise call.wrong(name, f"heads * dim that is a multiple of {FA_HIDDEN}")
    if not same(call.rank("tokenOffset", 1)[0], batch):
        raise call.wrong("tokenOffset", f"the shape [{batch}], as seqLen has")
    _check_caches(call, batch)
    return ((q[0], heads * value_dim) if len(q) == 2 else (q[0], q[1], heads * value_dim),)


def _check_new_rows(call: Call, name: str, heads: int, dim: int) -> None:
    q, shape = call.seen("q"), call.seen(name)
    if len(shape) != len(q):
        raise call.wrong(name, f"{len(q)} axes, as q has")
    if not same(shape[0], q[0]):
        raise call.wrong(name, f"{q[0]} rows, as q has")
    if _dim(call, name, heads) != dim:
        raise call.wrong(name, f"{heads} heads of {dim}")


def _cache_width(call: Call, name: str) -> Size:
    """heads * dim of a cache [layer, B, slots, width]; in NZ [layer, B, width / 16, slots, 16]."""
    if call.soc == "310p":
        shape = call.rank(name, 5)
        if shape[4] != NZ_WIDTH:
            raise call.wrong(name, f"[layer, sequences, width / {NZ_WIDTH}, slots, {NZ_WIDTH}]")
        return scaled(shape[2], NZ_WIDTH)
    return call.rank(name, 4)[3]


def _check_caches(call: Call, batch: Size) -> None:
    for name in ("cacheK", "cacheV"):
        if not same(call.seen(name)[1], batch):
            raise call.wrong(name, f"{batch} sequences in axis 1, as seqLen has")
    if not same_shape(call.seen("layerId"), (1,)):
        raise call.wrong("layerId", "the shape [1]")
    if not call.has("mask"):
        return
    mask = call.rank("mask", 2, 3, 4)
    if len(mask) == 3 and not same(mask[0], batch):
        raise call.wrong("mask", f"{batch} sequences in axis 0, as seqLen has",
                         "rows of a mask are counted from 0 in every sequence")


def paged_attention(call: Call) -> Shapes:
    heads, kv_heads = _heads(call)
    q = call.rank("q", 3)
    dim = _dim(call, "q", heads)
    block = _check_paged(call, "kCache", kv_heads, dim)
    value_dim = _paged_dim(call, "vCache", kv_heads)
    _check_paged(call, "vCache", kv_heads, value_dim)
    if dim > PAGED_DIM:
        raise call.wrong("q", f"a head_dim of at most {PAGED_DIM}")
    if dim > PAGED_WIDE_DIM and block > PAGED_WIDE_BLOCK:
        raise call.wrong("kCache", f"blocks of at most {PAGED_WIDE_BLOCK} slots, as the head_dim "
                         f"{dim} is more than {PAGED_WIDE_DIM}",
                         f"--pass kv_layout:block={PAGED_WIDE_BLOCK}")
    table = call.rank("blockTables", 2)
    for name, rows in (("blockTables", table[0]), ("contextLens", call.rank("contextLens", 1)[0])):
        if not same(rows, q[0]):
            raise call.wrong(name, f"a row for each of {q[0]} of q")
    if call.choice("maskType") == "MASK_TYPE_NORM_COMPRESS" and call.soc != "310p":
        raise call.field_wrong("maskType", "one that is not compressed: that is for 310p")
    return ((q[0], heads, value_dim),)


def _paged_dim(call: Call, name: str, heads: int) -> int:
    """The dim of a paged cache [blocks, block, heads, dim], in NZ [blocks, heads * dim / 16, block,
    16]."""
    call.rank(name, 4)
    if call.tensor(name).format == "nd":
        return call.known(name, 3)
    return call.known(name, 1) * NZ_WIDTH // heads


def _check_paged(call: Call, name: str, heads: int, dim: int) -> int:
    """Refuses a paged cache of other heads; the slots of its blocks."""
    call.rank(name, 4)
    if call.tensor(name).format == "nd":
        if call.known(name, 2) != heads or call.known(name, 3) != dim:
            raise call.wrong(name, f"[blocks, block, {heads}, {dim}]")
        return call.known(name, 1)
    if call.known(name, 1) * NZ_WIDTH != heads * dim or call.known(name, 3) != NZ_WIDTH:
        raise call.wrong(name, f"[blocks, heads * dim / {NZ_WIDTH}, block, {NZ_WIDTH}] for "
                         f"{heads} heads of {dim}")
    return call.known(name, 2)


def reshape_and_cache(call: Call) -> Shapes:
    k, v = call.rank("k", 3), call.rank("v", 3)
    if not same_shape(k[:2], v[:2]):
        raise call.wrong("v", f"{k[0]} rows of {k[1]} heads, as k has")
    blocks = []
    for name, cache in (("k", "kCache"), ("v", "vCache")):
        heads, dim = call.known(name, 1), call.known(name, 2)
        if call.tensor(cache).format == "nz" and not is_multiple(heads * dim, NZ_WIDTH):
            raise call.wrong(name, f"heads * dim that is a multiple of {NZ_WIDTH}")
        blocks.append(_check_paged(call, cache, heads, dim))
    if blocks[0] != blocks[1]:
        raise call.wrong("vCache", f"blocks of {blocks[0]} slots, as kCache has")
    if not same_shape(call.seen("slots"), k[:1]):
        raise call.wrong("slots", f"the shape [{k[0]}], a slot for each row of k")
    return call.seen("kCache"), call.seen("vCache")


def kv_cache(call: Call) -> Shapes:
    new, past = call.rank("newKv", 2, 4), call.rank("past", 4)
    width = new[-1] if len(new) == 2 else scaled(call.known("newKv", 2), call.known("newKv", 3))
    if call.tensor("past").format == "nd" and not same(past[3], width):
        raise call.wrong("past", f"a width of {width}, as newKv has")
    batch = call.rank("seqLen", 1)[0]
    if not same(call.rank("tokenOffset", 1)[0], batch) or not same(past[1], batch):
        raise call.wrong("past", f"{batch} sequences, as seqLen and tokenOffset have")
    return ()
