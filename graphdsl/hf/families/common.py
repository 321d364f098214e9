"""What several families write in the same way."""

from __future__ import annotations

from graphdsl.errors import GraphError
from graphdsl.hf.fields import Fields


def read_head_dim(fields: Fields) -> int:
    """head_dim, or where it is missing hidden_size shared among the heads."""
    if fields.has("head_dim"):
        return fields.integer("head_dim")
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if heads < 1 or hidden % heads:
        raise GraphError(
            f"{fields.path}: 'head_dim' is missing and 'hidden_size' {hidden} is not a multiple of"
            f" 'num_attention_heads' {heads}"
        )
    return hidden // heads
