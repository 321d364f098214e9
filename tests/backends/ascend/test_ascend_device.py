"""Operators of the ascend backend with their tensors on a device: the emulation, for which torch's
CPU is the device."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import graphdsl
from graphdsl.errors import GraphError
from graphdsl.models.llama import Config, LlamaLayer
from graphdsl.runtime import operator as operators
from graphdsl.runtime.device import HOST, Device
from graphdsl.runtime.operator import Operator

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module")
def built(emulation: Path) -> Operator:
    """The layer of the page's example, whose build is in the cache if that ran before."""
    config = Config(hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=96)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAPHDSL_CACHE", str(emulation))
        patch.delenv("ATB_HOME_PATH", raising=False)
        patch.delenv("ASCEND_HOME_PATH", raising=False)
        return graphdsl.build(LlamaLayer(config), backend="ascend")


def weights(operator: Operator) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {w["name"]: (torch.randn(w["shape"], generator=generator) / 8).half()
            for w in operator.manifest["weights"]}


def call(operator: Operator) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(1, 3, 64, generator=generator).half()
    positions = torch.arange(3, dtype=torch.int32)[None]
    angles = positions[..., None] / torch.arange(1, 9)
    y: torch.Tensor = operator(x, positions, angles.cos(), angles.sin(),
                               state=operator.new_state(1, 128))
    return y


def test_what_the_host_reads_is_in_the_manifest(built: Operator) -> None:
    ports = {p["name"]: p.get("host", False)
             for p in built.manifest["inputs"] + built.manifest["state"]}
    assert ports == {"x": False, "positions": True, "cos": False, "sin": False, "kv.k": False,
                     "kv.v": False, "block_table": True}
    assert built.device == Device(), "the emulation computes on the host"


def test_a_step_runs_on_the_stream_of_torch(built: Operator,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulation refuses a stream that it did not make: so it was given this one."""
    stream = SimpleNamespace(npu_stream=0x5EA0)
    module = SimpleNamespace(current_device=lambda: None, current_stream=lambda: stream)
    monkeypatch.setattr(operators, "open_device",
                        lambda owner, kind: Device(HOST, module, "npu_stream"))
    operator = graphdsl.load(built.path).bind(weights(built))
    for _ in range(2):
        assert call(built.bind(weights(built))).isfinite().all()
        with pytest.raises(GraphError, match=r"21 ERROR_INVALID_STREAM .*the Context has no stream "
                                             "that aclrtCreateStream made"):
            call(operator)
