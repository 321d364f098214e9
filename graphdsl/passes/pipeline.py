"""The pipeline of passes, and the runner: it alone verifies, times, dumps and names passes."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

from graphdsl.errors import GraphError
from graphdsl.ir import Graph
from graphdsl.passes.attention_epilogues import FuseAttention
from graphdsl.passes.base import CheckFailed, Fired, Missed, Pass, Target
from graphdsl.passes.cleanup import CleanUp
from graphdsl.passes.epilogues import FuseEpilogues
from graphdsl.passes.expand import Expand
from graphdsl.passes.experts import JoinExperts
from graphdsl.passes.fold import Fold, Hoist
from graphdsl.passes.kv_layout import KVLayout
from graphdsl.passes.loops import FuseLoops
from graphdsl.passes.memory import CheckMemory
from graphdsl.passes.precision import CheckDtypes, KeepF32
from graphdsl.passes.prologues import FusePrologues
from graphdsl.passes.quantise import Quantise
from graphdsl.passes.rewrite import substitute
from graphdsl.passes.roll import Roll
from graphdsl.passes.rotate import Rotate
from graphdsl.passes.shard import Shard
from graphdsl.passes.verify import Expected, problem_of

PIPELINE: tuple[Pass, ...] = (
    CheckDtypes(),    # first: what cannot be built is refused before any work
    Shard(),          # while weights have their names and Layers their lines; all else follows
    Roll(),           # while Layers are nodes: later their borders are gone
    Rotate(),         # norms are still Operations, and expand fuses what meets here
    Expand(),         # rules need Operations, one meaning each; kernels come after all of them
    KeepF32(),        # sums are kernels now, and what rules have recognised is out of the way
    CleanUp(),        # expansion leaves equal subexpressions, reshapes of reshapes, casts
    JoinExperts(),    # what it does to weights is folded next
    Hoist(),          # kernels only: the work of a turn is visible
    Fold(),           # merged weights and hoisted work on params become params
    Quantise(),       # weights that are merged are one param now, with what it is made of
    KVLayout(),       # every state and its writers are in sight, bodies of Operations are few
    FuseAttention(),  # before the others: what follows heads moves in front of their merging
    FuseEpilogues(),  # before loops: a matmul has the first claim on what follows it
    FuseLoops(),      # takes what is left
    FusePrologues(),  # loops are whole: what they make and who reads it is known
    CheckMemory(),    # last: holds for the graph that is planned
)
"""The passes for every target; those of a target's own come before the last one."""

Observe = Callable[[str, Graph], None]
Options = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class PassReport:
    """What one pass did, and how long it took."""

    name: str
    seconds: float
    nodes_before: int
    nodes_after: int
    fired: tuple[Fired, ...]
    missed: tuple[Missed, ...]


@dataclass(frozen=True)
class Lowered:
    """A graph that a backend can plan. `recipes` makes, by name, the params that the passes have
    added: each is a graph of params and kernels with one output."""

    graph: Graph
    recipes: Mapping[str, Graph] = field(default_factory=dict)
    report: tuple[PassReport, ...] = ()


def passes_for(target: Target) -> tuple[Pass, ...]:
    """All passes, in order: the common ones, and those that the target brings."""
    return (*PIPELINE[:-1], *target.passes, PIPELINE[-1])


def run_pipeline(graph: Graph, target: Target, options: Options | None = None,
                 verify: bool = False, observe: Observe | None = None,
                 passes: tuple[Pass, ...] | None = None) -> Lowered:
    """`graph` after all passes for `target`, or after `passes` alone.

    `options` are those of `--pass NAME:key=value`, by pass. With `verify`, the graph is run in the
    reference before and after every pass, on random inputs. `observe` gets the name of every pass
    and the graph after it.

    Raises GraphError for what the user can change, an unknown option among it, and CheckFailed
    where a pass is wrong.
    """
    lowered = Lowered(graph)
    check("trace", lowered)
    chosen = configured(passes_for(target) if passes is None else passes, options or {}, target)
    if verify and any(isinstance(each, Shard) and each.ranks > 1 for each in chosen):
        raise GraphError("--verify: the graph of one rank alone cannot be compared with the whole",
                         hint="leave --verify or --pass shard out")
    expected = Expected.of(graph, target.zero_padding) if verify else None
    for each in chosen:
        with _uncollected():
            after = run_pass(each, lowered, target)
        if expected and after.graph is not lowered.graph:
            expected.check(each.name, after.graph, after.recipes)
        if observe:
            observe(each.name, after.graph)
        lowered = after
    return lowered


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection for a while. A pass makes a hundred thousand small objects that live,
    and to look through them again and again takes a third of its time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def run_pass(each: Pass, lowered: Lowered, target: Target) -> Lowered:
    """`lowered` after one more pass, verified and reported."""
    start = time.perf_counter()
    result = (each.run_with(lowered.graph, lowered.recipes, target) if isinstance(each, Quantise)
              else each.run(lowered.graph, target))
    seconds = time.perf_counter() - start
    report = PassReport(each.name, seconds, count(lowered.graph), count(result.graph),
                        result.fired, result.missed)
    made = {name: unfolded(recipe, lowered.recipes) for name, recipe in result.recipes.items()}
    after = Lowered(result.graph, {**lowered.recipes, **made}, (*lowered.report, report))
    if result.graph is not lowered.graph:
        check(each.name, after)
    return after


def unfolded(recipe: Graph, recipes: Mapping[str, Graph]) -> Graph:
    """A recipe that reads what a checkpoint has: params that earlier passes have made are made in
    it."""
    known = {p: recipes[p.name] for p in recipe.params if p.name in recipes}
    if not known:
        return recipe
    params = (*(p for p in recipe.params if p not in known),
              *(p for made in known.values() for p in made.params))
    named = {p.name: p for p in params}
    new = {p: named[p.name] for p in params if named[p.name] is not p}
    new |= {p: made.outputs[0] for p, made in known.items()}
    return substitute(recipe, new, params=tuple(named.values()))


def check(name: str, lowered: Lowered) -> None:
    """Raises CheckFailed, with the name of the pass, for a graph that is not well formed."""
    problem = problem_of(lowered.graph)
    if problem:
        raise CheckFailed(f"after pass {name}: {problem}")


def count(graph: Graph) -> int:
    """The number of nodes, those in the bodies of repeats included."""
    bodies = [n.body for n in graph.nodes if n.name == "repeat" and n.body is not None]
    return len(graph.nodes) + sum(map(count, bodies))


def configured(passes: tuple[Pass, ...], options: Options, target: Target) -> tuple[Pass, ...]:
    """The passes with their options set. Raises GraphError for an unknown pass, option or value,
    and for one that the target does not have."""
    names = [each.name for each in passes]
    for name in options:
        if name == "static" and name not in names:
            raise GraphError("static makes two graphs of one, so it comes before a build and is no "
                             "pass of it", hint="build both graphs of graphdsl.static(layer, "
                             "length=256)")
        if name not in names:
            raise GraphError(f"no pass {name}", hint=f"passes: {', '.join(names)}")
    chosen = tuple(_with_options(each, options.get(each.name, {}), target) for each in passes)
    for each in chosen:
        if isinstance(each, KVLayout):
            each.check(target)
    return chosen


def _with_options(each: Pass, texts: Mapping[str, str], target: Target) -> Pass:
    known = {f.name: f for f in fields(each)}  # type: ignore[arg-type]  # Pass: all are dataclasses
    changes: dict[str, Any] = {}
    for key, text in texts.items():
        if key not in known:
            raise GraphError(f"pass {each.name} has no option {key}",
                             hint=f"options: {', '.join(known) or 'none'}")
        choices = known[key].metadata.get("choices")
        own = known[key].metadata.get("of_target")
        default = getattr(target, own) if own else known[key].default
        changes[key] = _read(f"{each.name}:{key}={text}", text, default, choices)
    return replace(each, **changes) if changes else each  # type: ignore[type-var]


def _read(what: str, text: str, default: Any, choices: tuple[str, ...] | None) -> Any:
    if choices is not None:
        if text not in choices:
            raise GraphError(f"--pass {what}: {text!r} is not a choice",
                             hint=f"choices: {', '.join(c for c in choices if c)}")
        return text
    try:
        return int(text)
    except ValueError:
        raise GraphError(f"--pass {what}: {text!r} is not a whole number",
                         hint=f"the default is {default}") from None
