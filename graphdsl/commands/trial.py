"""One call of a built operator on random tensors: what `run` checks and `bench` times."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from graphdsl.backend import Backend, find_backend
from graphdsl.builder import BuildOptions, build_graph
from graphdsl.commands.session import Session
from graphdsl.errors import GraphError
from graphdsl.ir import Dim, Graph, terms
from graphdsl.passes.samples import Samples, samples
from graphdsl.reference import STORAGE_TOLERANCE
from graphdsl.runtime.caches import Filled
from graphdsl.runtime.operator import Operator, State
from graphdsl.source import Source

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Trial:
    """An operator with weights and caches, and the same tensors for what it is compared with, which
    runs on the host."""

    source: Source
    options: BuildOptions
    operator: Operator
    given: Samples
    filled: Filled
    inputs: list[Tensor]
    state: State

    def call(self) -> list[Tensor]:
        """The results of one step; the caches take its keys and values."""
        result = self.operator(*self.placed, state=self.state)
        return [each.cpu() for each in (result if isinstance(result, tuple) else (result,))]

    @cached_property
    def placed(self) -> list[Tensor]:
        """The inputs where the operator reads them."""
        return list(map(self.operator.device.place, self.operator.inputs, self.inputs))

    def logical_state(self) -> list[Tensor]:
        """The caches as [batch, slots, kv_heads, head_dim], in the graph's order."""
        found = self.filled.caches(self.state)
        return [found[value.name].cpu() for value in self.source.graph.state]

    @property
    def storage_tolerance(self) -> float:
        """How far the storage of the caches alone may take the results from the reference."""
        storages = [p.layout.storage for p in self.operator.state if p.layout]
        return max((STORAGE_TOLERANCE.get(storage, 0.0) for storage in storages), default=0.0)

    def dims(self) -> dict[str, int]:
        """The sizes of the operator's plan."""
        return self.operator.check(self.placed, [self.state[p.name] for p in self.operator.state])


def make_trial(args: argparse.Namespace, session: Session, *, padded: bool,
               backend: Backend | None = None) -> Trial:
    """Builds FILE (with a form of the backend that the arguments name, if one is given) and draws
    tensors for the lengths that they ask for; caches hold `--past` random rows. Raises GraphError
    for a length that the file does not allow."""
    source = session.source(args)
    options = session.options(args, source.dtype)
    dims = {"batch": args.batch, "tokens": args.tokens, "slots": args.past + args.tokens}
    _check_dims(source.graph, dict(args.dims), dims)
    dims |= dict(args.dims)
    _check_bounds(source.graph, dims)
    session.progress.begin("build")
    with source.importing():
        operator = Operator(build_graph(source.graph, options, backend).path)
        dims["slots"] = operator.whole_pages(dims["slots"])
        pads = find_backend(args.backend, args.soc).target.padded_policies
        policies = {p.layout.policy for p in operator.state if p.layout}
        given = samples(source.graph, args.seed, dims, past=args.past,
                        padded=padded and policies <= pads)
    operator.bind(given.params)
    filled = Filled.of(operator.manifest, given.inputs, dims, args.seed)
    given = replace(given, state=filled.held(given.state))
    session.progress.clear()
    caches = filled.state(given.state)
    state = {port.name: operator.device.place(port, caches[port.name]) for port in operator.state}
    return Trial(source, options, operator, given, filled, filled.inputs(given.inputs), state)


def _dims(graph: Graph) -> dict[str, Dim]:
    return {d.name: d for v in graph.leaves for s in v.shape for d in terms(s)}


def _check_dims(graph: Graph, given: Mapping[str, int], lengths: Mapping[str, int]) -> None:
    """Raises GraphError for a --dim that the file does not have, or that has its own option."""
    known = sorted(_dims(graph).keys() - lengths.keys())
    for name in given:
        if name not in known:
            others = f"others are {', '.join(known)}" if known else "there are no others"
            raise GraphError(f"--dim {name}: no such size of {graph.name}",
                             hint="--batch, --tokens and --past have options of their own; "
                                  f"{others}")


def _check_bounds(graph: Graph, wanted: dict[str, int]) -> None:
    found = _dims(graph)
    options: dict[str, str] = {"slots": "--past and --tokens together"}
    for name, size in wanted.items():
        dim = found.get(name)
        if dim and not dim.lo <= size <= dim.hi:
            raise GraphError(f"{options.get(name, '--' + name)} {size}: {graph.name} takes "
                             f"{dim.lo} to {dim.hi}")


Call = Callable[[], "list[Tensor]"]
