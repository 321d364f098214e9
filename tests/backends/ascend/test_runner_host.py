"""What the runner computes on the host: tensors made of positions and tables, and the phase."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphdsl.backends.ascend.render as rendering

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

HERE = Path(rendering.__file__).parent
KINDS = ("slots", "lengths", "offsets", "contexts", "blocks", "layer", "ids", "angles",
         "picked", "triangle", "mask")
F16, I32, BF16 = 1, 3, 27
ND, NZ = 2, 29
Rows = Sequence[Sequence[int]]


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("runner") / "runner.so"
    subprocess.run(["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared",
                    f"-I{HERE / 'emulation' / 'include'}", f"-I{HERE / 'runner'}",
                    str(Path(__file__).with_name("test_runner.cpp")), "-o", str(path)], check=True)
    library = ctypes.CDLL(str(path))
    library.last_error.restype = ctypes.c_char_p
    library.choose.restype = ctypes.c_char_p
    return library


def numbers(rows: Rows | None) -> Any:
    """As int32 in memory, or a null pointer."""
    if rows is None:
        return None
    flat = [x for row in rows for x in row]
    return (ctypes.c_int32 * len(flat))(*flat)


def sizes(*values: int) -> Any:
    return (ctypes.c_int64 * len(values))(*values)


def made(runner: ctypes.CDLL, kind: str, shape: Sequence[int], positions: Rows | None = None,
         table: Rows | None = None, *, call: tuple[int, int] | None = None, block: int = 0,
         window: int = 0, limit: int = 0, dtype: int = I32, format: int = ND,
         given: np.ndarray | None = None) -> np.ndarray:
    """The tensor; masks as bits. `given` stands in the place of the table."""
    rows = positions or table or ((),)
    sequences, tokens = call or (len(rows), len(rows[0]))
    out = np.full(shape, 99, np.int32 if dtype == I32 else np.uint16)
    count = sum(map(len, positions)) if positions else 0
    pages = given.shape[-1] if given is not None else len(table[0]) if table else 0
    second = given.ctypes.data_as(ctypes.c_void_p) if given is not None else numbers(table)
    code = runner.fill(KINDS.index(kind), numbers(positions), ctypes.c_int64(count), second,
                       sizes(sequences, tokens), ctypes.c_int64(pages),
                       ctypes.c_int64(block), ctypes.c_int64(window), ctypes.c_int64(limit), dtype,
                       format, sizes(*shape), len(shape), ctypes.c_void_p(out.ctypes.data))
    if code:
        raise RuntimeError(runner.last_error().decode())
    return out


def phase(runner: ctypes.CDLL, names: str, positions: Rows | None) -> str:
    rows = positions or ((0,),)
    found = runner.choose(names.encode(), numbers(positions), sizes(len(rows), len(rows[0])))
    if found is None:
        raise RuntimeError(runner.last_error().decode())
    text: str = found.decode()
    return text


def test_a_slot_is_the_block_of_the_page_and_the_place_in_it(runner: ctypes.CDLL) -> None:
    slots = made(runner, "slots", (6,), [[3, 4, 5], [0, 9, -1]], [[7, 2, -1], [1, 5, 0]], block=4)
    assert slots.tolist() == [7 * 4 + 3, 2 * 4, 2 * 4 + 1, 4, 0 * 4 + 1, -1]


@pytest.mark.parametrize(("position", "page"), [(8, 2), (12, 3)])
def test_a_position_without_a_block_is_refused(runner: ctypes.CDLL, position: int,
                                               page: int) -> None:
    wanted = (f"positions of sequence 0 holds {position}, but block_table has no block for its "
              f"page {page} of 3 pages of 4 slots")
    with pytest.raises(RuntimeError, match=wanted):
        made(runner, "slots", (1,), [[position]], [[7, 2, -1]], block=4)


def test_lengths_count_padding(runner: ctypes.CDLL) -> None:
    assert made(runner, "lengths", (2,), call=(2, 5)).tolist() == [5, 5]


def test_token_offset_is_past_and_new_tokens(runner: ctypes.CDLL) -> None:
    assert made(runner, "offsets", (2,), [[4, 5, 6], [0, 1, 2]]).tolist() == [7, 3]


def test_every_query_sees_the_keys_up_to_its_position(runner: ctypes.CDLL) -> None:
    contexts = made(runner, "contexts", (6,), [[4, 5, -1], [-1, 0, 1]])
    assert contexts.tolist() == [5, 6, 1, 1, 1, 2]


def test_every_query_has_the_pages_of_its_sequence(runner: ctypes.CDLL) -> None:
    blocks = made(runner, "blocks", (4, 3), None, [[7, 2, -1], [1, 5, 0]], call=(2, 2))
    assert blocks.tolist() == [[7, 2, 0], [7, 2, 0], [1, 5, 0], [1, 5, 0]]


def test_the_layer_of_a_cache_of_one_layer_is_0(runner: ctypes.CDLL) -> None:
    assert made(runner, "layer", (1,), call=(2, 3)).tolist() == [0]


def test_padding_looks_up_row_0(runner: ctypes.CDLL) -> None:
    assert made(runner, "ids", (4,), [[5, -1], [7, 0]], limit=8).tolist() == [5, 0, 7, 0]


def test_an_id_beyond_its_table_is_refused(runner: ctypes.CDLL) -> None:
    wanted = "positions holds 8, but a table that it is looked up in has 8 rows.* ends at 7"
    with pytest.raises(RuntimeError, match=wanted):
        made(runner, "ids", (2,), [[5, 8]], limit=8)
    assert made(runner, "ids", (2,), [[5, 8]]).tolist() == [5, 8]


def test_picked_rows_are_counted_among_all(runner: ctypes.CDLL) -> None:
    picked = made(runner, "picked", (4,), [[1, 2], [0, 2]], call=(2, 3))
    assert picked.tolist() == [1, 2, 3, 5]


@pytest.mark.parametrize(("dtype", "hidden"), [(F16, -10000.0), (BF16, 1.0)])
def test_the_triangle_hides_what_comes_after(runner: ctypes.CDLL, dtype: int,
                                             hidden: float) -> None:
    bits = made(runner, "triangle", (128, 128), call=(1, 1), dtype=dtype)
    values = (bits.view(np.float16).astype(np.float32) if dtype == F16
              else (bits.astype(np.uint32) << 16).view(np.float32))
    expected = np.triu(np.full((128, 128), hidden, np.float32), 1)
    np.testing.assert_array_equal(values, expected)


def test_the_triangle_of_a_310p_lies_in_tiles(runner: ctypes.CDLL) -> None:
    plain = made(runner, "triangle", (128, 128), call=(1, 1), dtype=F16)
    tiled = made(runner, "triangle", (1, 8, 128, 16), call=(1, 1), dtype=F16, format=NZ)
    np.testing.assert_array_equal(tiled[0].transpose(1, 0, 2).reshape(128, 128), plain)


@pytest.mark.parametrize("window", [0, 2])
def test_rows_of_a_mask_are_counted_from_0(runner: ctypes.CDLL, window: int) -> None:
    positions = [[3, 4], [0, 1]]
    bits = made(runner, "mask", (2, 2, 6), positions, dtype=F16, window=window)
    at, keys = np.array(positions)[..., None], np.arange(6)
    seen = (keys <= at) & ((keys > at - window) | (window == 0))
    np.testing.assert_array_equal(bits == 0, seen)


@pytest.mark.parametrize("keys", [1, 4, 9])
@pytest.mark.parametrize("window", [0, 2])
def test_a_mask_of_the_caller_hides_besides(runner: ctypes.CDLL, keys: int, window: int) -> None:
    """Keys beyond it are hidden, but a single one stands for all."""
    positions = [[2, 3], [0, 1]]
    given = np.random.default_rng(5).random((2, 1, 2, keys)) < 0.6
    bits = made(runner, "mask", (2, 2, 6), positions, dtype=F16, window=window, given=given)
    alone = made(runner, "mask", (2, 2, 6), positions, dtype=F16, window=window)
    shown = np.zeros((2, 2, 6), bool)
    shown[..., :keys if keys > 1 else 6] = given[:, 0, :, :6]
    assert ((bits == 0) == ((alone == 0) & shown)).all()
    assert set(np.unique(bits)) <= {0, 0xF0E2}


@pytest.mark.parametrize(("positions", "expected"), [
    ([[0, 1, 2], [0, 1, 2]], "prefill"),
    ([[0, 1, -1], [0, -1, -1]], "prefill"),
    ([[0], [-1]], "prefill"),
    ([[-1, 0, 1], [0, 1, 2]], "decode"),  # padding on the left
    ([[0, 1, 2], [3, 4, 5]], "decode"),  # a chunk behind another
    ([[0, 1, -1], [0, -1, 2]], "decode"),
    ([[7]], "decode")])
def test_prefill_is_for_sequences_that_all_start(runner: ctypes.CDLL, positions: Rows,
                                                 expected: str) -> None:
    assert phase(runner, "prefill decode", positions) == expected
    assert phase(runner, "decode prefill", positions) == expected


def test_a_layer_without_positions_has_one_phase(runner: ctypes.CDLL) -> None:
    assert phase(runner, "decode", None) == "decode"


def test_what_no_phase_can_run_is_refused(runner: ctypes.CDLL) -> None:
    with pytest.raises(RuntimeError, match=r"positions have to be 0, 1, .* for every sequence"):
        phase(runner, "prefill", [[3]])


@pytest.mark.parametrize("positions", [[[4, 5, 6], [0, 1, 2]], [[9], [0]]])
def test_a_contiguous_cache_takes_any_past(runner: ctypes.CDLL, positions: Rows) -> None:
    assert phase(runner, "contiguous", positions) == "contiguous"


@pytest.mark.parametrize(("positions", "found"), [
    ([[0, 1], [3, -1]], "sequence 1 holds -1 at token 1, wanted 4"),
    ([[-1, 0]], "sequence 0 holds -1 at token 0, wanted a token"),
    ([[2, 4]], "sequence 0 holds 4 at token 1, wanted 3")])
def test_a_contiguous_cache_takes_no_padding_and_no_gaps(runner: ctypes.CDLL, positions: Rows,
                                                         found: str) -> None:
    with pytest.raises(RuntimeError, match=found) as caught:
        phase(runner, "contiguous", positions)
    assert "hint: build it with --pass kv_layout:policy=paged" in str(caught.value)
