"""A call that is made again and again on the same tensors, as a loop of decoding makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphdsl.runtime.plans import BoundPlan, held_tensors, threads_now

if TYPE_CHECKING:
    from torch import Tensor

    from graphdsl.runtime._native import Held
    from graphdsl.runtime.operator import Operator, State


class Prepared:
    """What `Operator.prepared` gives: `call()` runs a step on the tensors that it was made with.

    The numbers in them are new every time and are checked every time. The tensors must stay as they
    are: they are asked again only where the thread has run something else since. A step leaves
    nothing of Python's in the processor's caches, so to ask the caches of all layers for their
    places takes a tenth of a millisecond.
    """

    def __init__(self, operator: Operator, inputs: tuple[Tensor, ...], state: State | None) -> None:
        self._operator, self._inputs, self._state = operator, inputs, state
        self._results: Any = None
        self._known: tuple[BoundPlan, Held] | None = None

    def __call__(self) -> Any:
        """The results, one tensor or a tuple; on the host the same tensors every time, which the
        next call writes over. Raises GraphError as a call of the operator does."""
        if self._known is None:
            return self._checked()
        operator, (bound, held) = self._operator, self._known
        if operator._plans.last is not bound or bound.threads != threads_now():
            return self._checked()
        bound.bind(operator._bound_weights()[1])
        if not operator._stepped(bound.plan.step_held, held, ()):
            return self._checked()  # which says what is out of range
        return self._results

    def _checked(self) -> Any:
        """A call that asks everything of all tensors."""
        operator, state, one = self._operator, self._state or {}, len(self._operator.outputs) == 1
        if self._results is None or operator.device.away:
            results = operator(*self._inputs, state=self._state)
        else:
            out = [self._results] if one else self._results
            results = operator(*self._inputs, state=self._state, out=out)
        if not operator.device.away:
            tensors = [state[port.name] for port in operator.state]
            bound = operator._plans.last
            assert bound is not None
            self._known = bound, held_tensors(tuple(state), self._inputs, tensors,
                                              [results] if one else results)
        self._results = results
        return results


__all__ = ["Prepared"]
