"""Layers of Python behind `torch.classes.graphdsl.Operation`."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from graphdsl.errors import GraphError, ToolError
from graphdsl.runtime import torch_class
from graphdsl.runtime.torch_class import register


def nothing() -> None:
    """What happens in a call that nobody watches."""


@dataclass(eq=False)
class Counting:
    """Gives the sum of what it is given, and how often it was called."""

    name: str = "Counting"
    inside: Callable[[], Any] = nothing
    calls: int = 0
    told: list[str] = field(default_factory=list)
    twins: list[weakref.ref[Counting]] = field(default_factory=list)

    def twin(self) -> Counting:
        made = Counting(self.name, self.inside, told=self.told)
        self.twins.append(weakref.ref(made))
        return made

    def execute(self, tensors: Sequence[Tensor | None]) -> list[Tensor]:
        self.calls += 1
        self.inside()
        given = [t for t in tensors if t is not None]
        return [torch.stack(given).sum(0), torch.tensor(self.calls)]

    def execute_out(self, tensors: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> None:
        for target, result in zip(outputs, self.execute(tensors), strict=True):
            target.copy_(result)

    def set_name(self, name: str) -> None:
        self.told.append(name)

    def set_param(self, text: str) -> None:
        raise GraphError(f"{text} is wrong", hint="leave it out")


ONE = torch.ones(3)


def registered(layer: Counting, cache: Path, name: str | None = None) -> str:
    return register(layer, name, cache=cache, environment=dict(os.environ))


def operation(layer: Counting, cache: Path) -> Any:
    return torch.classes.graphdsl.Operation(registered(layer, cache))


def test_every_operation_has_a_twin(class_cache: Path) -> None:
    layer = Counting()
    first, second = (operation(layer, class_cache) for _ in range(2))
    for count in (1, 2):
        total, calls = first.execute([ONE, None, ONE])
        assert total.tolist() == [2.0] * 3
        assert int(calls) == count
    assert int(second.execute([ONE])[1]) == 1
    assert layer.calls == 0


def test_results_into_tensors_that_are_given(class_cache: Path) -> None:
    outputs = [torch.zeros(3), torch.tensor(0)]
    assert operation(Counting(), class_cache).execute_out([ONE, None], outputs) is None
    assert (outputs[0].tolist(), int(outputs[1])) == ([1.0] * 3, 1)


def test_names_and_numbers(class_cache: Path) -> None:
    layer = Counting()
    made = operation(layer, class_cache)
    made.set_name("layer 3")
    assert layer.told == ["layer 3"]
    with pytest.raises(RuntimeError, match=r"^rope is wrong\n  hint: leave it out"):
        made.set_param("rope")


def refusing(error: Exception) -> Callable[[], None]:
    def refuse() -> None:
        raise error
    return refuse


def test_errors(class_cache: Path) -> None:
    """Ours become errors of torch, as those of a library; others stay what they are."""
    for error in (GraphError("mask is odd", hint="even"), ToolError("no compiler")):
        with pytest.raises(RuntimeError, match=str(error)):
            operation(Counting(inside=refusing(error)), class_cache).execute([ONE])
    with pytest.raises(ValueError, match="not ours"):
        operation(Counting(inside=refusing(ValueError("not ours"))), class_cache).execute([ONE])


def test_a_twin_goes_with_its_operation_and_a_layer_with_its_name(class_cache: Path) -> None:
    layer = Counting()
    gone, made = weakref.ref(layer), operation(layer, class_cache)
    (twin,) = layer.twins
    assert twin() is not None
    del layer
    assert gone() is not None
    operation(Counting(), class_cache)
    gc.collect()
    assert gone() is None
    assert int(made.execute([ONE])[1]) == 1
    del made
    gc.collect()
    assert twin() is None


def test_calls_of_two_operations_at_once(class_cache: Path) -> None:
    """Each waits for the other inside its call."""
    both = threading.Barrier(2)
    layer = Counting(inside=lambda: both.wait(timeout=60))
    made = [operation(layer, class_cache) for _ in range(2)]
    with ThreadPool(2) as pool:
        found = pool.map(lambda each: each.execute([ONE]), made)
    assert [int(calls) for _, calls in found] == [1, 1]


def test_calls_of_one_operation_wait_for_each_other(class_cache: Path) -> None:
    busy = threading.Lock()

    def alone() -> None:
        assert busy.acquire(blocking=False)
        threading.Event().wait(0.01)
        busy.release()

    made = operation(Counting(inside=alone), class_cache)
    with ThreadPool(3) as pool:
        found = pool.map(lambda _: made.execute([ONE]), range(6))
    assert sorted(int(calls) for _, calls in found) == [1, 2, 3, 4, 5, 6]


def test_the_spelling_of_atb(class_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = registered(Counting(), class_cache, "Spelled")
    made = torch.classes.OperationTorch.OperationTorch(name)
    made.set_name("as the example does")
    assert made.execute([ONE, ONE])[0].tolist() == [2.0] * 3
    outputs = [torch.zeros(3), torch.tensor(0)]
    made.execute_out([ONE], outputs)
    assert int(outputs[1]) == 2
    monkeypatch.setattr(torch.ops.graphdsl, "alias_operation", lambda: False)
    with pytest.warns(UserWarning, match=r"that of other software: .*Operation\('Spelled'\) is"):
        registered(Counting(), class_cache, "Spelled")


THEIRS = """
#include <torch/custom_class.h>
struct Theirs : torch::CustomClassHolder {
  explicit Theirs(const std::string&) {}
  std::string whose() { return "theirs"; }
};
TORCH_LIBRARY(OperationTorch, m) {
  m.class_<Theirs>("OperationTorch").def(torch::init<std::string>()).def("whose", &Theirs::whose);
}
"""
IN_A_CHILD = """
import os, sys, warnings
from pathlib import Path
import torch
torch.ops.load_library(sys.argv[1])
from graphdsl.runtime.torch_class import register
sys.path[:0] = sys.argv[3].split(':')
from test_runtime_torch_layers import Counting
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    name = register(Counting(), cache=Path(sys.argv[2]), environment=os.environ)
print(*(w.message for w in found), sep="; ")
print(torch.classes.OperationTorch.OperationTorch(name).whose())
print(int(torch.classes.graphdsl.Operation(name).execute([torch.ones(1)])[1]))
"""


@pytest.mark.full
def test_the_class_of_other_software_is_left_alone(class_cache: Path, tmp_path: Path) -> None:
    source, library = tmp_path / "theirs.cpp", tmp_path / "theirs.so"
    source.write_text(THEIRS)
    subprocess.run(["g++", *torch_class._flags(), str(source), "-o", str(library),
                    *torch_class._libraries()], check=True)
    command = [sys.executable, "-c", IN_A_CHILD, str(library), str(class_cache),
               ":".join(map(str, Path(__file__).parents[:2]))]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert said[0].startswith("torch.classes.OperationTorch.OperationTorch is that of other")
    assert said[1:] == ["theirs", "1"]
