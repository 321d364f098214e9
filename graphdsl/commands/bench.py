"""graphdsl bench: the built operator and plain torch, on the same inputs, interleaved."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Mapping
from typing import Any

from graphdsl.backend import find_backend
from graphdsl.commands.figures import case_facts, check_file, machine_facts
from graphdsl.commands.roofline import measure_calls
from graphdsl.commands.session import Session, say
from graphdsl.commands.trial import Call, Trial, make_trial
from graphdsl.errors import GraphError
from graphdsl.lazy import torch, torch_dtype
from graphdsl.passes.base import CheckFailed
from graphdsl.reference import TOLERANCE, error_of

SAMPLE_SECONDS = 2e-3
"""A sample runs a call as often as fills this time, so that the clock does not count."""
FEWEST, MOST = 5, 1000


def run(args: argparse.Namespace, session: Session) -> int:
    """Prints a line an implementation: median, least and most milliseconds a call. Every call is
    the same step, so that caches which shift move as many rows each time; what the first one finds
    in them is what is compared. With --roofline it is the calls of the operator that are timed."""
    if args.roofline:
        return measure_calls(args, session)
    _check_options(args)
    if args.json:
        check_file("--json", args.json)
    trial = make_trial(args, session, padded=False)
    with trial.source.importing(), torch.inference_mode():
        calls: dict[str, Call] = {"graphdsl": trial.call}
        if args.vs:
            session.progress.begin("peer")
            calls |= _peers(trial, args)
            _check_agreement(trial, calls)
            session.progress.clear()
        times = _fastest(_interleaved(calls, args.seconds * len(calls)))
    results = [_summary(name, milliseconds) for name, milliseconds in times.items()]
    for result in results:
        say("{impl:<9} median {median_ms:9.3f} ms   min {min_ms:9.3f}   max {max_ms:9.3f}   "
            "{runs} runs".format(**result))
    for result in results[1:]:
        ratio = result["median_ms"] / results[0]["median_ms"]
        say(f"graphdsl is {ratio:.2f}x as fast as {result['impl']}")
    if args.json:
        machine = machine_facts(find_backend(args.backend, args.soc), session)
        report = {"machine": machine, "case": case_facts(trial, args), "results": results}
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _check_options(args: argparse.Namespace) -> None:
    for option, given in (("--plot", args.plot), ("--fresh", args.fresh)):
        if given:
            raise GraphError(f"{option} is a part of --roofline", hint="add --roofline")
    if args.vs and args.static:
        raise GraphError("--vs: peer(config) of a file takes neither masks nor padding, and "
                         "--static does", hint="leave one of them out")


def _peers(trial: Trial, args: argparse.Namespace) -> dict[str, Call]:
    """peer(config), one module or several, with the operator's weights and caches, eager and
    compiled. The names of several are numbered: `eager`, `eager 2`."""
    offered: Any = trial.source.peer()
    calls: dict[str, Call] = {}
    for number, module in enumerate(offered if isinstance(offered, tuple) else (offered,), 1):
        _prepare(module, trial, args)
        for form in args.vs:
            taken = torch.compile(module) if form == "compile" else module
            calls[form if number == 1 else f"{form} {number}"] = _caller(taken, trial.inputs)
    return calls


def _prepare(module: Any, trial: Trial, args: argparse.Namespace) -> None:
    if not callable(getattr(module, "load", None)):
        raise GraphError(f"peer(config) of {trial.source.path.name} returns "
                         f"{type(module).__name__}, without what a comparison needs",
                         hint="a torch.nn.Module (or a tuple of them) with load(params), and where "
                              "there is a KV cache reset(batch, slots, dtype) and set_past(k, v)")
    module.eval()
    module.load(trial.given.params)
    if trial.state:
        module.reset(args.batch, args.past + args.tokens, torch_dtype(trial.options.dtype))
        module.set_past(*(trial.given.state[v.name][:, :args.past]
                          for v in trial.source.graph.state))


def _fastest(times: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """Of several peers in one form, the one with the least median."""
    best: dict[str, list[float]] = {}
    for name, milliseconds in times.items():
        form = name.partition(" ")[0]
        if form not in best or statistics.median(milliseconds) < statistics.median(best[form]):
            best[form] = milliseconds
    return best


def _caller(module: Any, inputs: list[Any]) -> Call:
    def call() -> list[Any]:
        result = module(*inputs)
        return list(result) if isinstance(result, tuple) else [result]
    return call


def _check_agreement(trial: Trial, calls: Mapping[str, Call]) -> None:
    """Refuses to time things that do not compute the same; both sides round, hence the factor."""
    tolerance = 2 * max(TOLERANCE[trial.options.dtype], trial.storage_tolerance)
    ours = calls["graphdsl"]()
    for name in [name for name in calls if name != "graphdsl"]:
        theirs = calls[name]()
        if [t.shape for t in theirs] != [t.shape for t in ours]:
            raise CheckFailed(f"{name} of {trial.source.path.name} returns other shapes than the "
                              "layer, so their times say nothing")
        error = max((error_of(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)
        if not error <= tolerance:
            raise CheckFailed(f"{name} of {trial.source.path.name} computes something else: max "
                              f"relative error {error:.2g} (tolerance {tolerance:g}), so their "
                              "times say nothing")


def _interleaved(calls: Mapping[str, Call], seconds: float) -> dict[str, list[float]]:
    """Milliseconds a call, a sample of each implementation in turn."""
    repeats = {name: _repeats(call) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    for turn in range(MOST):
        if turn >= FEWEST and time.perf_counter() - start > seconds:
            break
        for name, call in calls.items():
            times[name].append(_timed(call, repeats[name]) * 1e3)
    return times


def _repeats(call: Call) -> int:
    """How many calls fill a sample; the first ones warm up."""
    for _ in range(3):
        call()
    return max(1, math.ceil(SAMPLE_SECONDS / _timed(call, 3)))


def _timed(call: Call, repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) / repeats


def _summary(name: str, milliseconds: list[float]) -> dict[str, Any]:
    return {"impl": name, "median_ms": statistics.median(milliseconds),
            "min_ms": min(milliseconds), "max_ms": max(milliseconds), "runs": len(milliseconds)}
