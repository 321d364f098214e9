"""Real models: reading checkpoints, fetching them, tokenizers, generating text, and replacing the
layers of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphdsl.api import replace_layers

__all__ = ["replace_layers"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'graphdsl.hf' has no attribute {name!r}")
    from graphdsl.api import replace_layers

    return replace_layers
