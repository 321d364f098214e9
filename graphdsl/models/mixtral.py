"""The Mixtral architecture in the DSL: a Llama whose feed-forward networks are experts, of which a
router chooses a few for every token. Its config and the names of its weights."""

from __future__ import annotations

from dataclasses import dataclass

from graphdsl.ir import Value
from graphdsl.layer import KVCache, Layer, Param
from graphdsl.models import llama
from graphdsl.models.decoder import names_in_layers
from graphdsl.ops import attention, cast, linear, reduce_sum, rms_norm, rope, silu, softmax
from graphdsl.ops.linear import expert_linear
from graphdsl.ops.search import topk
from graphdsl.ops.shape import expand, merge_heads, split_heads


@dataclass(frozen=True)
class Config(llama.Config):
    """A Llama's sizes and constants; `chosen` of `experts` networks work on a token."""

    experts: int = 8
    chosen: int = 2


MIXTRAL_8X7B = Config(kv_heads=8, ffn=14336, theta=1e6)


class MixtralLayer(Layer):
    """Attention, then the experts that suit each token; the rotary angles are given.

    Source: Jiang et al., Mixtral of Experts, arXiv 2401.04088.
    """

    signature = ("x[batch, tokens, hidden], positions[batch, tokens]:i32,"
                 " cos[batch, tokens, rotary]:f32, sin[batch, tokens, rotary]:f32"
                 " -> y[batch, tokens, hidden]")

    def __init__(self, config: Config = MIXTRAL_8X7B) -> None:
        c = self.config = config
        self.attn_norm = Param(c.hidden)
        self.wq = Param(c.heads * c.head_dim, c.hidden)
        self.wk = Param(c.kv_heads * c.head_dim, c.hidden)
        self.wv = Param(c.kv_heads * c.head_dim, c.hidden)
        self.wo = Param(c.hidden, c.heads * c.head_dim)
        self.ffn_norm = Param(c.hidden)
        self.router = Param(c.experts, c.hidden)
        self.w_gate = Param(c.experts, c.ffn, c.hidden)
        self.w_up = Param(c.experts, c.ffn, c.hidden)
        self.w_down = Param(c.experts, c.hidden, c.ffn)
        self.kv = KVCache(c.kv_heads, c.head_dim)

    def forward(self, x: Value, positions: Value, cos: Value, sin: Value) -> Value:
        c = self.config
        h = rms_norm(x, self.attn_norm, eps=c.eps)
        q = split_heads(linear(h, self.wq), c.heads)
        k = split_heads(linear(h, self.wk), c.kv_heads)
        v = split_heads(linear(h, self.wv), c.kv_heads)
        kv = self.kv.append(rope(k, cos, sin), v, positions)
        attended = attention(rope(q, cos, sin), kv.k, kv.v, positions, window=c.window)
        x = x + linear(merge_heads(attended), self.wo)
        h = rms_norm(x, self.ffn_norm, eps=c.eps)
        y: Value = x + cast(self.mixed(h), dtype=x.dtype)
        return y

    def mixed(self, h: Value) -> Value:
        """The weighted sum, in f32, of what the chosen experts make of h[batch, tokens, hidden].
        Weights are a softmax over all experts, scaled to sum to 1 over those that are chosen."""
        c = self.config
        weights, ids = topk(softmax(cast(linear(h, self.router), dtype="f32")), k=c.chosen)
        weights = weights / reduce_sum(weights)
        rows = expand(h[:, :, None], shape=(*ids.shape, c.hidden))
        made = silu(expert_linear(rows, self.w_gate, ids)) * expert_linear(rows, self.w_up, ids)
        made = cast(expert_linear(made, self.w_down, ids), dtype="f32")
        total: Value = made[:, :, 0] * weights[..., :1]
        for i in range(1, c.chosen):
            total = total + made[:, :, i] * weights[..., i:i + 1]
        return total


class Mixtral(llama.Llama):
    """Token ids to logits as in Llama, with layers of experts."""

    def __init__(self, config: Config = MIXTRAL_8X7B) -> None:
        super().__init__(config)
        self.layers = [MixtralLayer(config) for _ in range(config.layers)]


EXPERT_NAMES = {"w_gate": "w1", "w_up": "w3", "w_down": "w2"}
"""What Hugging Face calls the linears of an expert on disk, where every expert is apart."""


def weight_names(config: Config) -> dict[str, str | tuple[str, ...]]:
    """The name on disk of every param of Mixtral(config); one of each expert for stacked ones."""
    plain = {ours: theirs for ours, theirs in llama.LAYER_NAMES.items() if ours not in EXPERT_NAMES}
    plain["router"] = "block_sparse_moe.gate.weight"
    stacked = {
        f"layers.{i}.{ours}": tuple(
            f"model.layers.{i}.block_sparse_moe.experts.{e}.{theirs}.weight"
            for e in range(config.experts))
        for i in range(config.layers) for ours, theirs in EXPERT_NAMES.items()}
    head = {} if config.tied else {"head": "lm_head.weight"}
    return {"embed": "model.embed_tokens.weight", "norm": "model.norm.weight", **head,
            **names_in_layers(config.layers, "model.layers", plain), **stacked}
