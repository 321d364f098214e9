"""A call that is made again and again on the same tensors, as a loop of decoding makes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from graphdsl.runtime.plans import BoundPlan, ThreadPlans, held_tensors, stepped, threads_now
from graphdsl.runtime.weights import Checked

if TYPE_CHECKING:
    from torch import Tensor

    from graphdsl.runtime._native import Held


class Prepared:
    """What `Operator.prepared` gives on the host: `call()` runs a step on the tensors that it was
    made with, and gives the same results every time, which the next one writes over.

    The numbers in the tensors are new every time and are checked every time. The tensors must stay
    as they are: they are asked again only where the thread has run something else since. A step
    leaves nothing of Python's in the processor's caches, so to ask the caches of all layers for
    their places takes a tenth of a millisecond.
    """

    def __init__(self, call: Callable[..., Any], plans: ThreadPlans, weights: Callable[[], Checked],
                 tensors: Callable[[], tuple[Sequence[Tensor], Sequence[Tensor]]]) -> None:
        """`call` asks everything of all tensors, takes `out`, and leaves its plan in `plans`;
        `weights` are those bound now; `tensors` the inputs and the state in the plan's order."""
        self._call, self._plans, self._weights, self._tensors = call, plans, weights, tensors
        self._results: Any = None
        self._known: tuple[BoundPlan, Held] | None = None

    def __call__(self) -> Any:
        """The results, one tensor or a tuple. Raises GraphError as a call of the operator does."""
        if self._known is None:
            return self._checked()
        bound, held = self._known
        if self._plans.last is not bound or bound.threads != threads_now():
            return self._checked()
        bound.bind(self._weights())
        if not stepped(bound.plan.step_held, held, ()):
            return self._checked()  # which says what is out of range
        return self._results

    def _checked(self) -> Any:
        self._results = self._call(out=None if self._results is None else self._listed())
        inputs, state = self._tensors()
        assert self._plans.last is not None
        names = tuple(map(str, range(len(state))))  # by which nobody asks for these
        self._known = self._plans.last, held_tensors(names, inputs, state, self._listed())
        return self._results

    def _listed(self) -> tuple[Tensor, ...]:
        return self._results if isinstance(self._results, tuple) else (self._results,)


__all__ = ["Prepared"]
