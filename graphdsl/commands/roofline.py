"""graphdsl bench --roofline: every call of the operator beside what this machine can do at most."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from graphdsl.backend import Backend, find_backend
from graphdsl.builder import lower
from graphdsl.call_plan import CallPlan
from graphdsl.commands.figures import case_facts, check_file, machine_facts
from graphdsl.commands.session import Session, say
from graphdsl.commands.trial import Trial, make_trial
from graphdsl.errors import GraphError
from graphdsl.lazy import torch, torch_dtype
from graphdsl.manifest import Json
from graphdsl.roofline import Limits, Machine, Measured, beyond_cache, rate
from graphdsl.roofline_costs import Cost, Place, Step, cost, places
from graphdsl.roofline_svg import drawing
from graphdsl.runtime.operator import Operator, State

if TYPE_CHECKING:
    from torch import Tensor

MOST_COPIES, FEWEST, MOST = 256, 5, 100_000
"""Copies of what a step reads, and steps that are timed."""
SIZES, SLOWEST = (512, 1024, 2048), 0.1
"""Square matrices that torch multiplies; none larger than one that takes so many seconds."""
NANOSECOND = 1e-6
"""In milliseconds: the least that the clock tells from nothing."""
ABOVE = 1.1
"""Shares above this say that the machine was busy when its limits were measured."""
TORCH_SECONDS = 0.1
"""For each of torch's figures."""
NOTHING = Limits(0.0, 0.0, 0.0, 0.0)
"""What is known of torch before it is measured."""
PARTS = 2
"""Of a measurement, with the limits measured before, between and after them."""


@dataclass(frozen=True)
class Taken:
    """Medians of one call in a step, over all of its turns: milliseconds of the call, and of
    thread 0's waiting before it."""

    place: Place
    cost: Cost
    ms: float
    waited_ms: float


@dataclass(frozen=True)
class Copy:
    """Weights, inputs and caches of a step, which no other copy shares."""

    operator: Operator
    inputs: list[Tensor]
    state: State

    @cached_property
    def step(self) -> Callable[[], Any]:
        """A call on them, as a loop of decoding makes it."""
        return self.operator.prepared(*self.inputs, state=self.state)


def measure_calls(args: argparse.Namespace, session: Session) -> int:
    """Prints, for every call, its bytes, operations, time and share of its limit, then the whole
    step. Weights, inputs and caches are read from memory, not from the processor's caches."""
    backend = _checked(args)
    with torch.inference_mode():
        session.progress.begin("machine")
        threads = torch.get_num_threads()
        machine = backend.machine(threads, session.environment, session.cache, fresh=args.fresh)
        ruler = Ruler(backend, session, machine)
        ruler.measure()
        session.progress.clear()
        timed = backend.with_times()
        trial = make_trial(args, session, padded=False, backend=timed)
        with trial.source.importing():
            plan = _plan(trial, timed)
            copies = copies_of(trial, beyond_cache(machine.cache_bytes))
            samples = _sampled(copies, ruler, args.seconds)
    taken = _taken(plan, _step(trial, plan, args.past), samples)
    machine, by_torch = ruler.machine, ruler.by_torch
    limits = machine.limits.with_larger(by_torch)
    cached = trial.operator.workspace_bytes(trial.dims())[0] <= machine.cache_bytes
    calls = [call_figures(each, limits, cached=cached) for each in taken]
    step = step_figures(calls, samples, [each.place for each in taken])
    _print(machine, by_torch, calls, step)
    facts = machine_facts(backend, session) | {
        "limits": asdict(limits), "own_loops": machine.json(), "by_torch": asdict(by_torch)}
    report: Json = {"machine": facts, "case": case_facts(trial, args), "copies": len(copies),
                    "workspace_in_cache": cached, "calls": calls, "step": step}
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.plot:
        title = (f"{trial.source.name}, {trial.options.dtype}, batch {args.batch}, tokens "
                 f"{args.tokens}, past {args.past}: {machine.cpu}, {_threads(threads)}")
        args.plot.write_text(drawing(title, limits, calls))
    return 0


def _checked(args: argparse.Namespace) -> Measured:
    """The backend, once nothing speaks against a measurement."""
    if args.vs:
        raise GraphError("--roofline and --vs are two measurements", hint="make one at a time")
    for option, path in (("--json", args.json), ("--plot", args.plot)):
        if path:
            check_file(option, path)
    backend = find_backend(args.backend, args.soc)
    if not isinstance(backend, Measured):
        raise GraphError(f"--roofline: the {args.backend} backend does not measure its calls",
                         hint="--backend cpu does")
    return backend


@dataclass
class Ruler:
    """The limits of this machine: the largest of all that was measured, for what else runs on it
    takes from some measurements and not from others."""

    backend: Measured
    session: Session
    machine: Machine
    by_torch: Limits = NOTHING

    def measure(self) -> None:
        """Measures all of them."""
        own = self.backend.limits_now(self.machine.threads, self.session.environment,
                                      self.session.cache)
        self.machine = replace(self.machine, limits=self.machine.limits.with_larger(own))
        self.by_torch = self.by_torch.with_larger(torch_limits(self.machine.cache_bytes))


def torch_limits(cache_bytes: int) -> Limits:
    """What torch reaches: the bytes that a copy reads and writes, and its best matrix product."""
    array = torch.ones(beyond_cache(cache_bytes) // 8)
    target = torch.empty_like(array)

    def copied(turns: int) -> float:
        for _ in range(turns):
            target.copy_(array)
        return 2.0 * turns * array.nbytes

    return Limits(rate(copied, TORCH_SECONDS), _best_product("f32"), _best_product("bf16"), 0.0)


def _best_product(dtype: str) -> float:
    best = 0.0
    for size in SIZES:
        x = torch.ones(size, size, dtype=torch_dtype(dtype))
        out = torch.empty_like(x)

        def multiplied(turns: int, x: Tensor = x, out: Tensor = out) -> float:
            for _ in range(turns):
                torch.mm(x, x, out=out)
            return 2.0 * turns * float(x.shape[0]) ** 3

        best = max(best, rate(multiplied, TORCH_SECONDS))
        begin = time.perf_counter()
        multiplied(1)
        if time.perf_counter() - begin > SLOWEST:
            break
    return best


def _plan(trial: Trial, backend: Backend) -> CallPlan:
    """The plan that the operator was built from."""
    plan = backend.plan(lower(trial.source.graph, trial.options, backend))
    assert isinstance(plan, CallPlan)
    return plan


def _step(trial: Trial, plan: CallPlan, past: int) -> Step:
    dims = trial.dims()
    names = [port.name for port in plan.ports]
    for dim in plan.step_dims:
        dims[dim.name] = int(trial.inputs[names.index(dim.source)].flatten()[0])
    return Step(dims, past, [weight.nbytes for weight in trial.operator.weights])


def copies_of(trial: Trial, wanted: int) -> list[Copy]:
    """As many as have `wanted` bytes together, within bounds."""
    weights = trial.operator.weights
    own = sum(t.nbytes for t in (*weights, *trial.inputs, *trial.state.values()))
    copies = [Copy(trial.operator, trial.inputs, trial.state)]
    for _ in range(min(math.ceil(wanted / max(own, 1)), MOST_COPIES) - 1):
        copies.append(Copy(trial.operator.with_packed([w.clone() for w in weights]),
                           [t.clone() for t in trial.inputs],
                           {name: t.clone() for name, t in trial.state.items()}))
    return copies


@dataclass(frozen=True)
class Sample:
    """One step: its milliseconds, and what its calls took."""

    ms: float
    calls: list[tuple[int, int, int]]

    def between(self, places: Sequence[Place]) -> float:
        """The milliseconds in none of these calls."""
        return self.ms - sum(self.calls[place.number][0] for place in places) / 1e6


def _sampled(copies: Sequence[Copy], ruler: Ruler, seconds: float) -> list[Sample]:
    """Steps on all copies in turn, with the limits measured between and after. Copies that are too
    small to fill the caches find them filled with something else."""
    other = torch.ones(beyond_cache(ruler.machine.cache_bytes) // 4)
    for copy in copies:
        copy.step()
    samples: list[Sample] = []
    for part in range(1, PARTS + 1):
        begin = time.perf_counter()
        fewest, most = FEWEST * part // PARTS, MOST * part // PARTS
        while len(samples) < fewest or (len(samples) < most
                                        and time.perf_counter() - begin < seconds / PARTS):
            if len(copies) == MOST_COPIES:
                other.sum()
            samples += map(_sample, copies)
        ruler.measure()
    return samples


def _sample(copy: Copy) -> Sample:
    start = time.perf_counter()
    copy.step()
    took = time.perf_counter() - start
    return Sample(took * 1e3, copy.operator.call_times())


def _taken(plan: CallPlan, step: Step, samples: Sequence[Sample]) -> list[Taken]:
    """The medians of every call."""
    taken = []
    for place in places(plan):
        times = [sample.calls[place.number] for sample in samples]
        assert times[0][1] == place.turns, place
        ms, waited = (statistics.median(time[i] for time in times) / 1e6 for i in (0, 2))
        taken.append(Taken(place, cost(place, plan, step), ms, waited))
    return taken


def call_figures(taken: Taken, limits: Limits, *, cached: bool) -> Json:
    """A call over all of its turns. Bytes of the workspace count for its limit unless the workspace
    stays in the caches."""
    node, turns, cost = taken.place.call.node, taken.place.turns, taken.cost
    memory = cost.memory if cached else cost.moved
    least, bound = limits.bound(memory * turns, cost.operations * turns, cost.kind)
    return {"op": taken.place.call.op, "line": str(node.loc or ""), "scope": node.scope,
            "origin": list(node.origin), "turns": turns, "bytes": cost.moved * turns,
            "memory_bytes": memory * turns, "operations": cost.operations * turns,
            "kind": cost.kind, "ms": taken.ms, "waited_ms": taken.waited_ms,
            "limit_ms": least * 1e3, "bound": bound,
            "share": least * 1e3 / max(taken.ms, NANOSECOND)}


def step_figures(calls: Sequence[Json], samples: Sequence[Sample],
                 places: Sequence[Place]) -> Json:
    """The whole step, as Python sees it: its calls, and what is between them (the barriers, the
    start of the threads, the checks of its tensors): the median over the steps, for the sum of
    medians of calls is less than the median of their sums."""
    steps = [sample.ms for sample in samples]
    total = statistics.median(steps)
    between = statistics.median(sample.between(places) for sample in samples)
    summed = {key: sum(call[key] for call in calls)
              for key in ("bytes", "memory_bytes", "operations", "limit_ms")}
    return summed | {"ms": total, "calls_ms": total - between, "between_ms": between,
                     "barriers_ms": sum(call["waited_ms"] for call in calls),
                     "share": summed["limit_ms"] / total, "runs": len(steps),
                     "min_ms": min(steps), "max_ms": max(steps)}


def _print(machine: Machine, by_torch: Limits, calls: Sequence[Json], step: Json) -> None:
    own = machine.limits
    say(f"machine  {machine.cpu}, {machine.path}, {_threads(machine.threads)}, "
        f"{machine.cache_bytes >> 20} MB of last-level cache")
    say(f"measured read {own.read / 1e9:.1f} GB/s, f32 {own.f32 / 1e9:.1f} GFLOP/s, "
        f"bf16 {own.bf16 / 1e9:.1f} GFLOP/s, int8 {own.int8 / 1e9:.1f} Gop/s by own loops")
    say(f"measured copy {by_torch.read / 1e9:.1f} GB/s, f32 {by_torch.f32 / 1e9:.1f} GFLOP/s, "
        f"bf16 {by_torch.bf16 / 1e9:.1f} GFLOP/s by torch; the larger of the two is the limit")
    say()
    names = [f"{call['line']} {call['scope']}".strip() for call in calls]
    widths = max(map(len, (*(c["op"] for c in calls), "call")), default=0), max(map(len, names),
                                                                                default=0)
    say(f"{'call':{widths[0]}}  {'line':{widths[1]}} {'turns':>5} {'bytes':>9} {'flop':>9} "
        f"{'ms':>9}  share of limit")
    for name, call in zip(names, calls, strict=True):
        say(f"{call['op']:{widths[0]}}  {name:{widths[1]}} {call['turns']:5} "
            f"{amount(call['bytes']):>9} {amount(call['operations']):>9} {call['ms']:9.3f}  "
            f"{_share(call)}")
    say()
    say(f"step     {step['ms']:.3f} ms, the median of {step['runs']}: {amount(step['bytes'])} "
        f"bytes, {amount(step['operations'])} flop, {step['share']:.0%} of the limits")
    say(f"calls    {step['calls_ms']:.3f} ms")
    say(f"between  {step['between_ms']:.3f} ms ({step['between_ms'] / step['ms']:.1%}), of which "
        f"{step['barriers_ms']:.3f} ms at barriers")
    if max((call["share"] for call in calls if call["limit_ms"] > 0), default=0) > ABOVE:
        say("above    100%: the machine was busy when it was measured; --fresh measures it again")


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _share(call: Json) -> str:
    """A call that reads nothing from memory and multiplies next to nothing has no limit."""
    return f"{call['share']:.0%} {call['bound']}" if call["limit_ms"] > 0 else "-"


def amount(number: float) -> str:
    """`405.3 M`: three digits and more before the unit's point."""
    for unit in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.1f} {unit}" if unit else f"{number:.0f}"
        number /= 1000
    return f"{number:.1f} T"
