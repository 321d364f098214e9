"""graphdsl run: random inputs through the reference and the built operator."""

from __future__ import annotations

import argparse
from dataclasses import replace
from math import sqrt
from typing import TYPE_CHECKING

from graphdsl.backend import find_backend
from graphdsl.commands.session import Session, say
from graphdsl.commands.trial import make_trial
from graphdsl.passes.roll import is_layer
from graphdsl.passes.samples import reference_outputs, without_padding
from graphdsl.reference import ACT_TOLERANCE, TOLERANCE, error_of

if TYPE_CHECKING:
    from torch import Tensor

    from graphdsl.ir import Graph


def run(args: argparse.Namespace, session: Session) -> int:
    """Compares every result and cache with the reference in f64, which has quantised weights as
    the build has them; 1 above the tolerance. What a graph that masks attention by its own maths
    makes of padding is left out, and all of padding where the backend gives it no meaning."""
    trial = make_trial(args, session, padded=True)
    graph = trial.source.graph
    ours = [*trial.call(), *trial.logical_state()]
    with trial.source.importing():
        weights = trial.operator.dequantised(trial.given.params)
        wanted = reference_outputs(graph, replace(trial.given, params=weights))
    always = not find_backend(args.backend, args.soc).target.zero_padding
    ours, wanted = (without_padding(graph, trial.given, each, always=always)
                    for each in (ours, wanted))
    tolerance = max(TOLERANCE[trial.options.dtype], trial.storage_tolerance,
                    act_tolerance(graph))
    names = [f"output{i}" for i in range(len(graph.results))] + [v.name for v in graph.state]
    worst, outside, total = 0.0, 0, 0
    for name, found, reference in zip(names, ours, wanted, strict=True):
        error = error_of(found, reference)
        say(f"{name:<12} {list(found.shape)}: max relative error {error:.2g}")
        # max() would lose a NaN
        worst = error if not error <= worst else worst
        outside += count_outside(found, reference, tolerance)
        total += found.numel()
    if trial.operator.manifest["workspace_bytes"]:
        needed, least = trial.operator.workspace_bytes(trial.dims())
        say(f"workspace    {needed} bytes, lower bound {least}")
    say(f"max relative error {worst:.2g} (tolerance {tolerance:g}), {outside} of {total} elements "
        f"outside {tolerance:g} + {tolerance:g} * |ref|")
    return 0 if worst <= tolerance else 1


def act_tolerance(graph: Graph) -> float:
    """How far the rounding of activations alone may take the results from the reference."""
    acts = [v.type.quant.act for v in graph.params if v.type.quant]
    layers = max(1, sum(map(is_layer, graph.nodes)))
    return max((ACT_TOLERANCE.get(act, 0.0) for act in acts), default=0.0) * sqrt(layers)


def count_outside(ours: Tensor, reference: Tensor, tolerance: float) -> int:
    """How many elements differ by more than tolerance + tolerance * |ref|, or are no numbers."""
    difference = (ours.double() - reference.double()).abs()
    within = difference <= tolerance + tolerance * reference.double().abs()
    return int((~within).sum())
