"""A graph beside those of all ranks, run in lock step in the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from graphdsl.backends.cpu.backend import BACKEND
from graphdsl.ir import Graph
from graphdsl.passes.base import Target
from graphdsl.passes.pipeline import Lowered, run_pipeline
from graphdsl.passes.samples import Samples, reference_outputs, samples, without_padding
from graphdsl.passes.shard import Shard
from graphdsl.ranks import run_ranks
from graphdsl.reference import TOLERANCE, error_of, run

CPU = BACKEND.target
HEADS = 2


def rank_graphs(graph: Graph, ranks: int) -> list[Graph]:
    """The graph of every rank, after the pass alone."""
    return [Shard(rank, ranks).run(graph, CPU).graph for rank in range(ranks)]


def lowered_ranks(graph: Graph, ranks: int, target: Target = CPU) -> list[Lowered]:
    """The graph of every rank after the whole pipeline."""
    return [run_pipeline(graph, target, {"shard": {"rank": str(rank), "ranks": str(ranks)}})
            for rank in range(ranks)]


def own_state(state: Mapping[str, Tensor], graph: Graph, rank: int, ranks: int
              ) -> dict[str, Tensor]:
    """The heads of a rank of full caches [batch, slots, kv_heads, head_dim]."""
    found = {}
    for value in graph.state:
        whole, own = state[value.name].shape[HEADS], value.shape[HEADS]
        assert isinstance(own, int)
        parts = whole // own
        found[value.name] = state[value.name].narrow(HEADS, rank * parts // ranks * own, own)
    return found


def outputs_of_ranks(lowered: Sequence[Lowered], given: Samples) -> list[list[Tensor]]:
    """What every rank returns, in f64."""
    ranks = len(lowered)
    params = [{**given.params, **{name: run(recipe, {}, given.params, exact=True)[0]
                                  for name, recipe in each.recipes.items()}} for each in lowered]
    states = [own_state(given.state, each.graph, rank, ranks)
              for rank, each in enumerate(lowered)]
    return run_ranks([each.graph for each in lowered], given.inputs, params, states, exact=True)


def assert_ranks_agree(graph: Graph, lowered: Sequence[Lowered], seed: int = 0) -> None:
    """Every rank returns what the whole graph does, and its heads of the caches."""
    given = samples(graph, seed, past=3)
    wanted = without_padding(graph, given, reference_outputs(graph, given))
    results = len(graph.results)
    names = [v.name for v in graph.state]
    for rank, found in enumerate(outputs_of_ranks(lowered, given)):
        caches = dict(zip(names, wanted[results:], strict=True))
        own = own_state(caches, lowered[rank].graph, rank, len(lowered))
        found = without_padding(graph, given, found)
        for a, b in zip(found, [*wanted[:results], *own.values()], strict=True):
            assert a.shape == b.shape
            assert error_of(a, b) <= TOLERANCE["f64"]
