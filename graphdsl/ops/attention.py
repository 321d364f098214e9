"""Attention over keys and values, with the shapes that a KV cache has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graphdsl.errors import GraphError
from graphdsl.ir import FLOATS, Dim, Size, TensorType
from graphdsl.lazy import torch
from graphdsl.op import kernel
from graphdsl.ops.linear import wide

if TYPE_CHECKING:
    from torch import Tensor

SIGNATURE = ("q[b, t, h, d], k[b, s, g, d], v[b, s, g, e], positions?[b, t]:i32, mask?[*m]:M,"
             " table?[b, p]:i32 -> y[b, t, h, e]")


def _checked(types: Sequence[TensorType], attrs: dict[str, Any]) -> tuple[TensorType, ...]:
    q, k, v = types[:3]
    (b, t, h, _), (s, g) = q.shape, k.shape[1:3]
    if not isinstance(h, int) or not isinstance(g, int) or h % g:
        raise GraphError(f"q is {q} and k is {k}: {h} heads cannot share {g} kv heads",
                         hint="the kv heads have to divide the heads")
    if attrs["window"] < 0 or (attrs["window"] and not attrs["causal"]):
        raise GraphError(f"window is {attrs['window']} and causal is {attrs['causal']}",
                         hint="a window is the number of tokens that a causal query sees; 0: all")
    if attrs["softcap"] < 0:
        raise GraphError(f"softcap is {attrs['softcap']}, wanted 0 (none) or more")
    if "mask" in attrs["given"]:
        mask = types[3 + ("positions" in attrs["given"])]
        _check_mask(mask, (b, h, t, s), q.dtype)
    return (TensorType((b, t, h, v.shape[3]), q.dtype),)


def _check_mask(mask: TensorType, scores: tuple[Size, ...], dtype: str) -> None:
    floats = " or ".join(dict.fromkeys((dtype, "f32")))
    wanted = f"bool or {floats} that broadcasts to [{', '.join(map(str, scores))}]"
    shape = scores[len(scores) - len(mask.shape):]
    fits = len(mask.shape) <= len(scores) and all(
        m in (1, size) for m, size in zip(mask.shape[:-1], shape, strict=False))
    # A dim of its own is a number of keys that is known only when it is run.
    keys = mask.shape[-1] if mask.shape else 1
    own = isinstance(keys, Dim) and keys not in scores
    fits = fits and (keys in (1, scores[-1]) or own)
    if not fits or mask.dtype not in ("bool", *FLOATS):
        raise GraphError(f"mask is {mask}, wanted {wanted}",
                         hint="axes are batch, heads, tokens, keys; a literal 1 is broadcast, and "
                         "keys may be a dim of its own")


@kernel(SIGNATURE, infer=_checked)
def attention(q: Tensor, k: Tensor, v: Tensor, positions: Tensor | None = None,
              mask: Tensor | None = None, table: Tensor | None = None, *, causal: bool = True,
              scale: float | None = None, window: int = 0, softcap: float = 0.0) -> Tensor:
    """softmax(q k^T * scale + mask) v for every head, h / g heads sharing one of k and v.

    q[b, t, h, d], k[b, s, g, d], v[b, s, g, e] -> [b, t, h, e]; scores and sums in f32 (f64 for
    f64), rounded once. Key j is seen by the query at positions[b, t]:i32 = p if it is causal and
    j <= p and, with a window, j > p - window; without positions token i stands at i. The row of a
    query at -1 (padding) is 0, and so is one that sees no key. mask, broadcast to [b, h, t, s], is
    bool (True: seen) or is added to the scores; where its last axis is a dim of its own, keys
    beyond it are unseen, and what it says beyond the keys is ignored, but a single key stands for
    all. scale is 1 / sqrt(d) unless given; with a softcap c scores become c * tanh(score / c)
    before the mask. Keys that no query sees are never read. `table`, the block table of a paged k
    and v, says where rows lie and changes no number.

    Source: Vaswani et al., arXiv 1706.03762; Ainslie et al., GQA, arXiv 2305.13245; window:
    Beltagy et al., Longformer, arXiv 2004.05150.
    """
    group = q.shape[2] // k.shape[2]
    keys, values = (x.repeat_interleave(group, 2) for x in (wide(k), wide(v)))
    scores = torch.einsum("bthd,bshd->bhts", wide(q), keys)
    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    seen = _seen(q.shape[1], k.shape[1], positions, causal, window, q.device)
    if mask is not None:
        seen, mask = seen & _within(mask, k.shape[1]), _fitted(mask, k.shape[1])
    if mask is not None and mask.dtype == torch.bool:
        seen = seen & mask
    elif mask is not None:
        scores = scores + mask
    scores = scores.masked_fill(~seen, -torch.inf)
    largest = scores.amax(-1, keepdim=True)
    weights = (scores - largest.masked_fill(largest == -torch.inf, 0.0)).exp()
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-30)
    # What lies in slots that nobody sees may be anything, and 0 * nan is nan.
    unseen = ~seen.expand(scores.shape).any(2).transpose(1, 2)
    values = values.masked_fill(unseen.unsqueeze(-1), 0.0)
    return torch.einsum("bhts,bshe->bthe", weights, values).to(q.dtype)


def _within(mask: Tensor, keys: int) -> Tensor:
    """Which keys a mask speaks of: bool [keys]."""
    width = mask.shape[-1] if mask.dim() else 1
    return torch.arange(keys, device=mask.device) < (keys if width == 1 else width)


def _fitted(mask: Tensor, keys: int) -> Tensor:
    """The mask with as many keys as there are, or one."""
    if not mask.dim() or mask.shape[-1] == 1:
        return mask
    return torch.nn.functional.pad(mask, (0, keys - mask.shape[-1]))


def _seen(tokens: int, keys: int, positions: Tensor | None, causal: bool, window: int,
          device: torch.device) -> Tensor:
    """Which keys a query sees: bool [b or 1, 1, t, s]."""
    if positions is None:
        positions = torch.arange(tokens, device=device).unsqueeze(0)
    at = positions.long()[:, None, :, None]
    key = torch.arange(keys, device=device)
    seen = at >= 0
    if causal:
        seen = seen & (key <= at)
    if window:
        seen = seen & (key > at - window)
    return seen.expand(-1, -1, -1, keys)
