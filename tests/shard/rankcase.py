"""One rank of a run of several processes, which meet by a file. Run as a program:

    python rankcase.py CASE RANK RANKS STORE
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed

import graphdsl
from graphdsl.errors import GraphError, ToolError
from graphdsl.layer import trace
from graphdsl.models.llama import Config, Llama, LlamaLayer
from graphdsl.passes.samples import samples
from graphdsl.reference import TOLERANCE, error_of, run
from graphdsl.runtime.operator import Operator

TINY = Config(vocab=48, hidden=32, layers=2, heads=8, kv_heads=2, head_dim=4, ffn=24)
SECONDS = 20
"""How long gloo waits for another rank."""
LOST = 3
"""The exit code of a rank that has lost another, as that of the command line."""


def tiny(dtype: str) -> Operator:
    """This rank's part of a whole model, on one thread, with random weights."""
    torch.set_num_threads(1)
    graph = trace(Llama(TINY), dtype)
    operator = graphdsl.build(graph, tensor_parallel=torch.distributed.group.WORLD)
    return operator.bind(samples(graph, seed=0).params)


def agrees(dtype: str) -> None:
    """A prompt of two sequences and a token more, against the reference of the whole model."""
    graph, operator = trace(Llama(TINY), dtype), tiny(dtype)
    params, state = samples(graph, seed=0).params, operator.new_state(2, 11)
    assert all(t.shape[1] < TINY.heads for t in state.values())
    whole = {n: torch.zeros_like(t) for n, t in samples(graph, seed=0).state.items()}
    for past, tokens in ((0, 5), (5, 1)):
        given = samples(graph, past, {"tokens": tokens}, past=past, padded=False)
        wanted = run(graph, given.inputs, params, whole)
        whole = dict(zip(whole, wanted[1:], strict=True))
        error = error_of(operator(*given.inputs.values(), state=state), wanted[0])
        assert error <= TOLERANCE[dtype], error


def ascend() -> None:
    """A GQA Llama layer on the emulation of ATB against the unsharded one there: a prompt, then a
    token, in paged caches. With a power of 2 ranks a linear and its sum are one operation."""
    torch.set_num_threads(1)
    layer = LlamaLayer(replace(TINY, head_dim=16, hidden=64, ffn=96))
    own = graphdsl.build(layer, "ascend", tensor_parallel=torch.distributed.group.WORLD)
    whole = graphdsl.build(layer, "ascend")
    graph = trace(layer, "f16")
    weights = samples(graph, seed=0).params
    operators = [o.bind(weights) for o in (own, whole)]
    states = [o.new_state(2, 11) for o in operators]
    for past, tokens in ((0, 5), (5, 1)):
        given = samples(graph, past, {"tokens": tokens}, past=past, padded=False).inputs
        found, wanted = (o(*given.values(), state=s)
                         for o, s in zip(operators, states, strict=True))
        error = error_of(found, wanted)
        assert error <= TOLERANCE["f16"], error
    text = "".join(p.read_text() for p in (own.path / "src").glob("*.cpp"))
    assert text.count("LinearParallelParam param") == 4, "two a graph, one graph a phase"


def step(operator: Operator) -> None:
    """One token of one sequence."""
    ids = torch.ones(1, 1, dtype=torch.int32)
    rows = torch.zeros(1, 1, dtype=torch.int32)
    operator(ids, rows, rows, state=operator.new_state(1, 4))


def f32() -> None:
    agrees("f32")


def bf16() -> None:
    agrees("bf16")


def dies() -> None:
    """The last rank is killed between two steps; the others say so and end."""
    operator = tiny("f32")
    step(operator)
    if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        step(operator)
    except ToolError as error:
        sys.stderr.write(f"error: {error}\n")
        os._exit(LOST)


def refused() -> None:
    """A number out of range, another rank's build, one without a group, and a copy."""
    operator = tiny("f32")
    ids = torch.full((1, 1), TINY.vocab, dtype=torch.int32)
    rows = torch.zeros(1, 1, dtype=torch.int32)
    rank = torch.distributed.get_rank()
    told = [graphdsl.load(operator.path, torch.distributed.group.WORLD).name]
    assert told == [operator.name]
    for call in (lambda: operator(ids, rows, rows, state=operator.new_state(1, 4)),
                 lambda: graphdsl.load(operator.path), operator.__reduce__):
        try:
            call()
        except GraphError as error:
            told.append(error.message)
    assert len(told) == 4, told
    assert f"ids holds {TINY.vocab}" in told[1] or str(TINY.vocab) in told[1], told
    assert f"was built for rank {rank} of 2, and no process group is given" in told[2], told
    assert f"rank {rank} of 2 cannot be copied" in told[3], told


CASES: dict[str, Callable[[], None]] = {"f32": f32, "bf16": bf16, "dies": dies,
                                        "refused": refused, "ascend": ascend}


def main() -> None:
    case, rank, ranks, store = sys.argv[1:5]
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(store, int(ranks)), rank=int(rank),
        world_size=int(ranks), timeout=timedelta(seconds=SECONDS))
    for name in case.split("+"):
        CASES[name]()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
