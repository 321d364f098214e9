"""A whole Llama model: embedding, layers in a plain loop, a final norm and a head."""

from __future__ import annotations

from graphdsl import Model, Param, Value
from graphdsl.models.llama import Config, LlamaLayer
from graphdsl.ops import cast, embedding, linear, rms_norm, rope_angles, take_rows

SMOL = Config(vocab=49152, hidden=576, layers=30, heads=9, kv_heads=3, head_dim=64, ffn=1536,
              theta=100000.0, tied=True)
"""The sizes of SmolLM2 135M; change one with `--set layers=4`."""


class Llama(Model):
    """Token ids to the logits of the tokens that `rows` names; layers of equal structure are
    generated once and run in a loop over their weights."""

    signature = ("ids[batch, tokens]:i32, positions[batch, tokens]:i32, rows[batch, outputs]:i32"
                 " -> logits[batch, outputs, vocab]:f32")

    def __init__(self, config: Config = SMOL) -> None:
        c = self.config = config
        self.embed = Param(c.vocab, c.hidden)
        self.layers = [LlamaLayer(c) for _ in range(c.layers)]
        self.norm = Param(c.hidden)
        self.head = self.embed if c.tied else Param(c.vocab, c.hidden)

    def forward(self, ids: Value, positions: Value, rows: Value) -> Value:
        c = self.config
        cos, sin = rope_angles(positions, rotary_dim=c.head_dim, theta=c.theta, scaling=c.scaling)
        x = embedding(ids, self.embed)
        for layer in self.layers:
            x = layer(x, positions, cos, sin)
        h = rms_norm(take_rows(x, rows), self.norm, eps=c.eps)
        return cast(linear(h, self.head), dtype="f32")
