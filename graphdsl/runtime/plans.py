"""What a thread keeps of its calls: plans, their workspace, and the states that fitted."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphdsl.errors import GraphError
from graphdsl.lazy import torch
from graphdsl.runtime.weights import Checked

if TYPE_CHECKING:
    from torch import Tensor

    from graphdsl.runtime._native import Held, Plan

_PROCESS = os.getpid()
"""Where this module was loaded: in any other process OpenMP's threads were lost in a fork."""
PLANS_A_THREAD = 8
"""Plans that a thread keeps; the one unused longest goes first. They share one workspace."""
STATES_A_THREAD = 256
"""States that a thread knows again, by weak reference; the one known longest goes first."""


@dataclass
class BoundPlan:
    """A plan, and what was checked when it was made: a call with the same shapes skips that.
    `shapes` and `dtypes` are those of the inputs, then of the state."""

    plan: Plan
    threads: int
    states: int
    shapes: list[torch.Size]
    dtypes: list[torch.dtype]
    outputs: list[tuple[list[int], dict[str, Any]]]
    weights: Checked | None = None

    def bind(self, weights: Checked) -> None:
        """Lets the plan read these weights."""
        if self.weights is not weights:
            self.plan.bind(weights.table)
            self.weights = weights

    def takes(self, inputs: Sequence[Tensor]) -> bool:
        """Whether inputs on the host are as they were when the plan was made."""
        if len(inputs) + self.states != len(self.shapes):
            return False
        for tensor, shape, dtype in zip(inputs, self.shapes, self.dtypes, strict=False):
            if not (tensor.shape == shape and tensor.dtype is dtype and tensor.is_cpu
                    and tensor.is_contiguous()):
                return False
        return True

    def new_results(self) -> list[Tensor]:
        """Tensors for the results."""
        return [torch.empty(size, **options) for size, options in self.outputs]

    def gives(self, outputs: Sequence[Tensor]) -> bool:
        """Whether these are tensors on the host that the results can be written to."""
        if len(outputs) != len(self.outputs):
            return False
        return all(tensor.is_cpu and tensor.is_contiguous() and list(tensor.shape) == size
                   and tensor.dtype is options["dtype"] and not tensor.requires_grad
                   for tensor, (size, options) in zip(outputs, self.outputs, strict=True))


class ThreadPlans(threading.local):
    """Plans by threads and dims, on one workspace that grows; and the states that fitted a plan, by
    the identity of their dict: a hint, for what was found is compared before it is used."""

    def __init__(self) -> None:
        self.plans: OrderedDict[tuple[int, ...], BoundPlan] = OrderedDict()
        self.states: OrderedDict[int, tuple[BoundPlan, Held]] = OrderedDict()
        self.workspace: Tensor | None = None
        self.last: BoundPlan | None = None

    def add(self, key: tuple[int, ...], bound: BoundPlan) -> None:
        """Keeps a plan."""
        self.plans[key] = bound
        if len(self.plans) > PLANS_A_THREAD:
            self.plans.popitem(last=False)

    def clear(self) -> None:
        """Forgets plans and workspace: the plans write to it."""
        self.plans.clear()
        self.states.clear()
        self.last = self.workspace = None

    def remember(self, inputs: Sequence[Tensor], state: Mapping[str, Tensor],
                 tensors: Sequence[Tensor], out: Sequence[Tensor]) -> None:
        """That the tensors of the last call fitted its plan. Those of the state are given in the
        order in which the plan reads them; only a dict in that order is known again."""
        if self.last is None or not isinstance(state, dict):
            return
        if list(map(id, state.values())) == list(map(id, tensors)):
            held = held_tensors(tuple(state), inputs, tensors, out)
            self.states.pop(id(state), None)
            self.states[id(state)] = self.last, held
            if len(self.states) > STATES_A_THREAD:
                self.states.popitem(last=False)


def stepped(step: Callable[..., bool], *given: Any) -> bool:
    """What a step of native code gives: whether all numbers of its inputs are in range. Raises
    GraphError for what it refuses, with the hint that its message may end with."""
    try:
        return step(*given)
    except RuntimeError as error:
        message, _, hint = str(error).partition("\n  hint: ")
        raise GraphError(message, hint=hint) from None


def threads_now() -> int:
    """Those that torch has for this thread."""
    if os.getpid() != _PROCESS:
        return 1
    return torch.get_num_threads()


def held_tensors(names: tuple[str, ...], inputs: Sequence[Tensor], state: Sequence[Tensor],
                 results: Sequence[Tensor]) -> Held:
    """Where the tensors of a call lie; `names` are those of the state."""
    from graphdsl.runtime._native import Held

    data_ptr = torch.Tensor.data_ptr
    return Held(names, tuple(inputs), tuple(state), tuple(results),
                list(map(data_ptr, (*inputs, *state, *results))), data_ptr)


__all__ = ["PLANS_A_THREAD", "STATES_A_THREAD", "BoundPlan", "ThreadPlans", "held_tensors",
           "stepped", "threads_now"]
