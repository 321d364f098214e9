"""What the tests of the CLI share: a layer, results, and watching folders and processes."""

from __future__ import annotations

import os
import resource
import signal
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


def start(*argv: str | Path, env: dict[str, str] | None = None, group: bool = False,
          limit: tuple[int, int] | None = None) -> subprocess.Popen[str]:
    """The CLI in a process of its own; in a group of its own too, so that its compiler can be
    ended with it; or under a resource limit."""
    def prepare() -> None:
        if limit:
            # Without the signal, a write beyond the limit fails with an error, as on a full disk.
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(limit[0], (limit[1], limit[1]))

    return subprocess.Popen([sys.executable, "-m", "graphdsl", *map(str, argv)], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=prepare,
                            start_new_session=group, env=dict(os.environ) | (env or {}))
