"""What every decoder shares: its signature, the loop over its layers, and the head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from graphdsl.errors import GraphError
from graphdsl.ir import Value
from graphdsl.layer import Layer, Model, Param, class_loc
from graphdsl.ops import cast, embedding, linear, take_rows


class DecoderConfig(Protocol):
    """What a Decoder asks of its family's Config. `tied` uses the embedding table as the head,
    `embeddings` makes the Model take embeddings instead of ids, and `hidden_states` makes it return
    what goes into every layer and what comes out of the last."""

    @property
    def vocab(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def tied(self) -> bool: ...
    @property
    def embeddings(self) -> bool: ...
    @property
    def hidden_states(self) -> bool: ...


class Decoder(Model):
    """Token ids to the logits, in f32, of the tokens that `rows` names.

    ids[batch, tokens]:i32 (x[batch, tokens, hidden] when config.embeddings), positions[batch,
    tokens]:i32 (-1: padding), rows[batch, outputs]:i32 -> logits[batch, outputs, vocab]:f32, and
    when config.hidden_states hidden0 ... hiddenN, each [batch, tokens, hidden].

    A family's `__init__` calls this one, then sets `layers`, the params of its last norm and
    `head = self.new_head()`; it has to write `last_norm`, and overrides what else differs.
    """

    layers: Sequence[Layer]
    head: Value

    def __init__(self, config: DecoderConfig) -> None:
        self.config = config
        self.signature = _signature(config)
        self.embed = Param(config.vocab, config.hidden)

    def new_head(self) -> Value:
        """The weight of the head, [vocab, hidden]: the embedding table where they are tied."""
        return self.embed if self.config.tied else Param(self.config.vocab, self.config.hidden)

    def embedded(self, ids: Value) -> Value:
        """ids[batch, tokens]:i32 -> x[batch, tokens, hidden]; not called when config.embeddings."""
        x: Value = embedding(ids, self.embed)
        return x

    def entering(self, x: Value, positions: Value) -> Value:
        """What goes into the first layer, from the embeddings x[batch, tokens, hidden]."""
        return x

    def shared(self, positions: Value) -> tuple[Value, ...]:
        """What is computed once for all layers, such as rotary angles."""
        return ()

    def given(self, index: int, shared: tuple[Value, ...]) -> tuple[Value, ...]:
        """What layer `index` takes after x and positions."""
        return shared

    def last_norm(self, x: Value) -> Value:
        """x[batch, outputs, hidden], the last layer's output, normalised for the head."""
        raise GraphError(f"{type(self).__name__} has no last_norm", class_loc(type(self)),
                         "write def last_norm(self, x): and return the normalised x")

    def logits(self, h: Value) -> Value:
        """h[batch, outputs, hidden] -> logits[batch, outputs, vocab]:f32."""
        result: Value = cast(linear(h, self.head), dtype="f32")
        return result

    def forward(self, ids: Value, positions: Value, rows: Value) -> Value | tuple[Value, ...]:
        c = self.config
        shared = self.shared(positions)
        x = self.entering(ids if c.embeddings else self.embedded(ids), positions)
        hidden = [x]
        for index, layer in enumerate(self.layers):
            x = layer(x, positions, *self.given(index, shared))
            hidden.append(x)
        logits = self.logits(self.last_norm(take_rows(x, rows)))
        return (logits, *hidden) if c.hidden_states else logits


def names_in_layers(layers: int, prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    """`layers.0.wq` to `<prefix>.0.self_attn.q_proj.weight` and so on for every layer, from the
    name on disk that `names` has for each param of one."""
    return {f"layers.{i}.{ours}": f"{prefix}.{i}.{theirs}"
            for i in range(layers) for ours, theirs in names.items()}


def _signature(c: DecoderConfig) -> str:
    first = "x[batch, tokens, hidden]" if c.embeddings else "ids[batch, tokens]:i32"
    results = ["logits[batch, outputs, vocab]:f32"]
    if c.hidden_states:
        results += [f"hidden{i}[batch, tokens, hidden]" for i in range(c.layers + 1)]
    return (f"{first}, positions[batch, tokens]:i32, rows[batch, outputs]:i32"
            f" -> {', '.join(results)}")
