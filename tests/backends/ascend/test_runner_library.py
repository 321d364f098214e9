"""Rendered libraries at work: phases, padding, sizes that change, and what they say when wrong."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rendercase import HIDDEN, LONGEST, Llama, linear_add
from runnercase import Loaded, Sequences, build, llama, llama_weights

from graphdsl.runtime._native import Library

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

TOLERANCE = 2e-2


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, emulation: Path) -> Path:
    return build(linear_add(), tmp_path_factory.mktemp("small"), emulation)


@pytest.fixture(scope="session")
def layer(tmp_path_factory: pytest.TempPathFactory, emulation: Path) -> Loaded:
    path = build(Llama().case(), tmp_path_factory.mktemp("llama"), emulation)
    return Loaded(Library(str(path)), given=5, params=8)


@pytest.fixture
def sequences(layer: Loaded) -> Sequences:
    return Sequences(layer, llama_weights(torch.float16), torch.float16, batch=2, pages=3)


def tokens(count: int, batch: int = 2) -> torch.Tensor:
    return torch.randn((batch, count, HIDDEN), generator=torch.Generator().manual_seed(count))


def at(first: int, count: int, batch: int = 2) -> torch.Tensor:
    return torch.arange(first, first + count).repeat(batch, 1)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.float(), expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_prefill_then_decode_agree_with_torch(sequences: Sequences) -> None:
    x = tokens(20)
    expected = llama(sequences.weights, x.half().float())
    close(sequences.step(x[:, :17], at(0, 17)), expected[:, :17])
    for i in range(17, 20):
        close(sequences.step(x[:, i:i + 1], at(i, 1)), expected[:, i:i + 1])


def test_chunks_behind_others_agree_with_torch(sequences: Sequences) -> None:
    x = tokens(40)
    expected = llama(sequences.weights, x.half().float())
    for first in range(0, 40, 8):
        found = sequences.step(x[:, first:first + 8], at(first, 8))
        close(found, expected[:, first:first + 8])


def test_padding_on_the_right_of_a_prefill_changes_no_other_row(sequences: Sequences) -> None:
    x, positions = tokens(12), at(0, 12)
    positions[1, 7:] = -1
    expected = llama(sequences.weights, x.half().float())
    found = sequences.step(x, positions)
    close(found[0], expected[0])
    close(found[1, :7], expected[1, :7])
    # Nothing was appended for padding: the next token of the second sequence stands at 7.
    later = sequences.step(x[:, 7:8], torch.tensor([[12], [7]]))
    close(later[1], expected[1, 7:8])


def test_padding_on_the_left_changes_no_other_row(sequences: Sequences) -> None:
    x = tokens(6)
    shifted = torch.cat((torch.full((2, 2, HIDDEN), 50.0), x[:, :4]), 1)
    positions = torch.tensor([[-1, -1, 0, 1, 2, 3]] * 2)
    expected = llama(sequences.weights, x.half().float())
    close(sequences.step(shifted, positions)[:, 2:], expected[:, :4])


def test_plans_of_other_sizes_share_what_is_between_graphs(sequences: Sequences) -> None:
    x = tokens(30)
    expected = llama(sequences.weights, x.half().float())
    close(sequences.step(x[:, :2], at(0, 2)), expected[:, :2])
    close(sequences.step(x[:, 2:30], at(2, 28)), expected[:, 2:30])  # memory grows
    other = Sequences(sequences.loaded, sequences.weights, torch.float16, batch=1, pages=3)
    close(other.step(x[:1, :2], at(0, 2, 1)), expected[:1, :2])


def test_the_same_lengths_at_other_addresses_are_right(sequences: Sequences) -> None:
    x, y = tokens(5), tokens(5) * 0.5
    first = sequences.step(x, at(0, 5))
    second = sequences.step(y, at(0, 5))
    close(first, llama(sequences.weights, x.half().float()))
    close(second, llama(sequences.weights, y.half().float()))


def test_weights_that_are_bound_later_count(sequences: Sequences) -> None:
    x = tokens(4)
    sequences.step(x, at(0, 4))
    sequences.weights = {n: w * 0.5 if n == "w_down" else w for n, w in sequences.weights.items()}
    close(sequences.step(x, at(0, 4)), llama(sequences.weights, x.half().float()))


def test_a_position_beyond_the_tables_of_angles_is_refused(sequences: Sequences) -> None:
    sequences = replace(sequences, pages=5)
    wanted = (f"LlamaLayer: positions holds {LONGEST}, but a table .* has {LONGEST} rows(.|\n)*"
              "hint: .* --pass angle_table:rows=N")
    with pytest.raises(RuntimeError, match=wanted):
        sequences.step(tokens(1), at(LONGEST, 1))
    x = tokens(3)  # and the library goes on
    close(sequences.step(x, at(0, 3)), llama(sequences.weights, x.half().float()))


def test_a_page_without_a_block_is_refused(sequences: Sequences) -> None:
    sequences.table[1, 1] = -1
    with pytest.raises(RuntimeError, match="positions of sequence 1 holds 16, but block_table has "
                                           "no block for its page 1"):
        sequences.step(tokens(1), at(16, 1))


def test_a_small_library_computes(small: Path) -> None:
    loaded = Loaded(Library(str(small)), given=2, params=1)
    x, z = tokens(3)[..., :32].half(), tokens(4)[:, :3, :32].half()
    w = torch.randn(32, 32, generator=torch.Generator().manual_seed(1)).half()
    found = loaded.step((2, 3), [x, z], [w], torch.empty_like(x))
    close(found, x.float() @ w.float().T + z.float())


def test_a_tensor_that_is_not_bound_is_named(small: Path) -> None:
    loaded = Loaded(Library(str(small)), given=2, params=1)
    x = torch.zeros(2, 3, 32).half()
    loaded.step((2, 3), [x, x], [torch.zeros(32, 32).half()], torch.empty_like(x))
    with pytest.raises(RuntimeError, match=r"Small: nothing is bound to z f16\[6, 32\]"):
        loaded.plans[2, 3].step([x.data_ptr(), 0, x.data_ptr()])
