"""What the tests of the CLI share: a layer, results, and watching folders and processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SMALL = '''\
from dataclasses import dataclass

from graphdsl import Layer, Param
from graphdsl.ops import linear, silu


@dataclass(frozen=True)
class Config:
    hidden: int = 8
    scale: float = 2.0
    gate: bool = True


class Small(Layer):
    """A gate."""

    signature = "x[batch, tokens, hidden] -> y[batch, tokens, hidden]"

    def __init__(self, config=Config()):
        self.config = config
        self.w = Param(config.hidden, config.hidden)

    def forward(self, x):
        return silu(linear(x, self.w)) * self.config.scale + x
'''
"""A layer that builds in a second."""

PEER = '''

def peer(config):
    import torch

    class Peer(torch.nn.Module):
        def load(self, params):
            self.w = torch.nn.Parameter(params["w"], requires_grad=False)

        def forward(self, x):
            return torch.nn.functional.silu(x @ self.w.T) * config.scale + x

    return Peer()
'''


@dataclass(frozen=True)
class Result:
    """What a command printed and returned."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        return self.out.strip().splitlines()[-1]


Cli = Callable[..., Result]


Refused = Callable[..., str]


def tree(*folders: Path) -> dict[str, bytes]:
    """Every file below the folders, with what is in it."""
    return {str(p): p.read_bytes() if p.is_file() else b"" for f in folders for p in f.rglob("*")}


def start(*argv: str | Path, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """The CLI in a process of its own."""
    return subprocess.Popen([sys.executable, "-m", "graphdsl", *map(str, argv)], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=dict(os.environ) | (env or {}))
