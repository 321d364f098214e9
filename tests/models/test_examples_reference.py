"""The examples in the reference: what they compute, and that their peers compute the same."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from graphdsl.models.llama import Config, weight_names
from graphdsl.reference import error_of, run
from graphdsl.source import Source, load_source

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = {"hidden": "48", "heads": "6", "kv_heads": "2", "head_dim": "16", "ffn": "40"}


def random_params(source: Source) -> dict[str, Tensor]:
    """Weights that keep numbers near 1, by name."""
    generator = torch.Generator().manual_seed(0)
    return {v.name: torch.randn(v.shape, generator=generator) / v.shape[-1] ** 0.5
            for v in source.graph.params}


@dataclass(frozen=True)
class Peer:
    """One of the peers of an example, and sizes to compare it at."""

    file: str
    which: int
    settings: dict[str, str]

    def module(self, source: Source) -> Any:
        offered = source.peer()
        return offered[self.which] if isinstance(offered, tuple) else offered

    def __str__(self) -> str:
        sizes = "-".join(self.settings.values())
        return f"{self.file}-{'transformers' if self.which else 'torch'}-{sizes}"


GPT2 = {"hidden": "48", "heads": "6", "ffn": "40"}
PEERS = [*(Peer("llama_layer.py", which, {**SMALL, "kv_heads": kv_heads})
           for which in (0, 1) for kv_heads in ("6", "2")),
         *(Peer("gpt2_layer.py", which, GPT2) for which in (0, 1)),
         *(Peer("chatglm2_layer.py", 0, {**SMALL, "head_dim": dim}) for dim in ("8", "16"))]


@pytest.mark.parametrize("case", PEERS, ids=str)
def test_the_peers_of_layers_agree(case: Peer) -> None:
    source = load_source(EXAMPLES / case.file, case.settings)
    params, peer = random_params(source), case.module(source)
    shape = (2, 16, *(n for n in source.graph.state[0].shape[2:] if isinstance(n, int)))
    state = {"kv.k": torch.zeros(shape), "kv.v": torch.zeros(shape)}
    peer.load(params)
    peer.reset(2, 16, torch.float32)
    past = 0
    for tokens in (5, 1, 1, 3):
        x = torch.randn(2, tokens, 48)
        positions = torch.arange(past, past + tokens, dtype=torch.int32).expand(2, tokens)
        y, *new = run(source.graph, [x, positions], params, state)
        peer.set_past(state["kv.k"][:, :past], state["kv.v"][:, :past])
        assert error_of(peer(x, positions), y) < 1e-5
        state = dict(zip(state, new, strict=True))
        past += tokens
        if case.which == 0:
            kept = peer.keys[:, :, :past].transpose(1, 2)
            assert error_of(kept, state["kv.k"][:, :past]) < 1e-5


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_the_peer_of_my_activation_agrees(dtype: str) -> None:
    source = load_source(EXAMPLES / "my_activation.py", {"hidden": "96"}, dtype)
    params, peer = random_params(source), source.peer()
    peer.load(params)
    x = torch.randn(2, 3, 96).to(torch.bfloat16 if dtype == "bf16" else torch.float32) * 3
    ours = run(source.graph, [x], params)[0]
    h = x.float().relu().square() * params["temperature"]
    assert error_of(ours, h.softmax(-1).to(x.dtype)) < (1e-5 if dtype == "f32" else 1e-2)
    assert error_of(peer(x), ours) < (1e-5 if dtype == "f32" else 1e-2)


@torch.no_grad()
def test_the_model_is_a_llama() -> None:
    settings = {**SMALL, "layers": "2", "vocab": "50"}
    source = load_source(EXAMPLES / "llama.py", settings)
    params = random_params(source)
    config = LlamaConfig(
        vocab_size=50, hidden_size=48, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=16, intermediate_size=40, rms_norm_eps=1e-5,
        tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e5})
    model = LlamaForCausalLM(config).eval()
    names = weight_names(Config(layers=2, tied=True))
    model.load_state_dict({names[n]: t for n, t in params.items()}, strict=False)
    ids = torch.randint(0, 50, (2, 7), dtype=torch.int32)
    positions = torch.arange(7, dtype=torch.int32).expand(2, 7)
    rows = torch.tensor([[6], [0]], dtype=torch.int32)
    state = {v.name: torch.zeros(2, 8, 2, 16) for v in source.graph.state}
    logits = run(source.graph, [ids, positions, rows], params, state)[0]
    expected = model(ids.long()).logits[torch.arange(2), rows[:, 0].long()]
    assert error_of(logits[:, 0], expected) < 1e-5


def test_tracing_does_not_import_torch() -> None:
    script = ("import sys; from pathlib import Path; from graphdsl.source import load_source\n"
              "for path in sys.argv[1:]: load_source(Path(path))\n"
              "assert 'torch' not in sys.modules and 'numpy' not in sys.modules")
    files = sorted(map(str, EXAMPLES.glob("*.py")))
    assert len(files) >= 3
    subprocess.run([sys.executable, "-c", script, *files], check=True,
                   cwd=Path(__file__).parents[2])
