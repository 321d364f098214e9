"""What the runner asks of ATB: Setup only where something that it sees has changed."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphdsl.runtime
from graphdsl.backends.ascend.emulation_build import INCLUDE, build_emulation
from graphdsl.backends.ascend.render import runner_files

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


class Counts(ctypes.Structure):
    _fields_ = (("setups", ctypes.c_int32), ("executes", ctypes.c_int32),
                ("fail_at_setup", ctypes.c_int32), ("fail_at_execute", ctypes.c_int32),
                ("workspace", ctypes.c_uint64), ("stream", ctypes.c_void_p),
                ("memory", ctypes.c_void_p), ("contexts", ctypes.c_void_p),
                ("host_contexts", ctypes.c_void_p), ("waits", ctypes.c_int32),
                ("hold", ctypes.c_int32))


@dataclass
class Session:
    """The library, what it counts, and its plans by their rows."""

    library: ctypes.CDLL
    plans: dict[int, Any] = field(default_factory=dict)

    @property
    def counts(self) -> Counts:
        counts: Counts = self.library.counted().contents
        return counts

    def plan(self, rows: int) -> Any:
        if rows not in self.plans:
            plan = ctypes.c_void_p()
            nothing = (ctypes.c_void_p * 5)()
            dims = (ctypes.c_int64 * 1)(rows)
            assert self.library.gdsl_plan_create(nothing, dims, 1, None, ctypes.byref(plan)) == 0
            self.plans[rows] = plan
        return self.plans[rows]

    def step(self, x: np.ndarray, positions: list[int], stream: int | None = None) -> np.ndarray:
        plan, out = self.plan(len(x)), np.zeros_like(x)
        given = np.array(positions, np.int32)
        for i, tensor in ((0, x), (1, given), (4, out)):
            self.library.gdsl_plan_rebind(plan, i, ctypes.c_void_p(tensor.ctypes.data))
        if self.library.gdsl_step(plan, ctypes.c_void_p(stream)):
            raise RuntimeError(self.library.gdsl_last_error().decode())
        return out

    def close(self) -> None:
        for plan in self.plans.values():
            self.library.gdsl_plan_destroy(plan)
        self.plans.clear()


@pytest.fixture(scope="session")
def counting(tmp_path_factory: pytest.TempPathFactory, emulation: Path) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("session")
    for name, text in runner_files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    archive, path = build_emulation(emulation, os.environ), folder / "library.so"
    subprocess.run(["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared",
                    f"-I{INCLUDE}", f"-I{folder / 'src' / 'runner'}",
                    "-Wl,--wrap=aclrtSynchronizeStream", str(Path(__file__).with_suffix(".cpp")),
                    str(archive), "-fopenmp", "-o", str(path)], check=True)
    library = ctypes.CDLL(str(path))
    library.counted.restype = ctypes.POINTER(Counts)
    library.new_stream.restype = ctypes.c_void_p
    library.gdsl_last_error.restype = library.refusal.restype = ctypes.c_char_p
    library.gdsl_packed_bytes.restype = ctypes.c_int64
    return library


@pytest.fixture
def session(counting: ctypes.CDLL) -> Iterator[Session]:
    made = Session(counting)
    ctypes.memset(ctypes.byref(made.counts), 0, ctypes.sizeof(Counts))
    yield made
    made.close()


def ones(rows: int) -> np.ndarray:
    return np.ones((rows, 4), np.float32)


def test_equal_runs_of_a_graph_are_set_up_once(session: Session) -> None:
    np.testing.assert_array_equal(session.step(ones(3), [4, 5, 6]), ones(3) + 2)
    assert (session.counts.setups, session.counts.executes) == (1, 2)
    session.step(ones(3), [4, 5, 6])
    assert (session.counts.setups, session.counts.executes) == (1, 4)


def test_other_addresses_are_not_set_up_again(session: Session) -> None:
    session.step(ones(3), [4, 5, 6])
    np.testing.assert_array_equal(session.step(ones(3) * 3, [4, 5, 6]), ones(3) * 5)
    assert session.counts.setups == 1


def test_other_values_on_the_host_are_set_up_again(session: Session) -> None:
    for step in range(3):
        session.step(ones(1), [step])
    assert (session.counts.setups, session.counts.executes) == (3, 6)


def test_other_shapes_are_set_up_again(session: Session) -> None:
    for rows in (3, 2, 3):
        session.step(ones(rows), [7] * rows)
    assert session.counts.setups == 3


def test_what_failed_is_set_up_again(session: Session) -> None:
    session.counts.fail_at_execute = 2
    with pytest.raises(RuntimeError, match=r"Counted: Counting failed with ATB error 4 "
                                           r"ERROR_RT_FAIL for x f32\[1, 4\], contexts i32\[1\], "
                                           r"y f32\[1, 4\]"):
        session.step(ones(1), [3])
    session.step(ones(1), [3])
    assert session.counts.setups == 2


def test_a_graph_that_is_not_set_up_says_what_it_was_given(session: Session) -> None:
    session.counts.fail_at_setup = 1
    with pytest.raises(RuntimeError, match=r"Counted: Counting refuses x f32\[1, 4\], contexts "
                                           r"i32\[1\], y f32\[1, 4\]: ATB error 8 "
                                           r"ERROR_INVALID_TENSOR_DIM"):
        session.step(ones(1), [3])
    session.step(ones(1), [3])
    assert (session.counts.setups, session.counts.executes) == (2, 2)


def test_plans_share_one_workspace_that_grows(session: Session) -> None:
    session.counts.workspace = 1000
    session.step(ones(1), [3])
    first = session.counts.memory
    session.counts.workspace = 100
    session.step(ones(2), [3, 4])
    assert session.counts.memory == first
    session.counts.workspace = 1 << 20
    session.step(ones(3), [3, 4, 5])
    session.step(ones(3), [3, 4, 5])
    assert session.counts.memory is not None
    assert session.counts.setups == 3


def test_the_stream_of_a_step_is_the_callers_if_there_is_one(session: Session) -> None:
    session.step(ones(1), [3])
    own, given = session.counts.stream, session.library.new_stream()
    session.step(ones(1), [3], given)
    assert session.counts.stream == given
    session.step(ones(1), [3])
    assert session.counts.stream == own


def test_steps_on_a_stream_are_not_waited_for(session: Session) -> None:
    given = session.library.new_stream()
    session.step(ones(1), [3], given)
    session.counts.waits = 0
    for _ in range(20):
        session.step(ones(1), [3], given)
    assert session.counts.waits == 0
    session.step(ones(1), [3])
    assert session.counts.waits == 2, "for the other stream, and for the results"


def test_queued_steps_keep_what_was_prepared_for_them(session: Session) -> None:
    """On the device and on the host: another step writes there after a wait alone."""
    given = session.library.new_stream()
    session.step(ones(1), [0])
    session.counts.waits, waits, held = 0, [], dict[int, int]()
    for step in range(30):
        session.step(ones(1), [step], given)
        waits.append(session.counts.waits)
        for place in (session.counts.contexts, session.counts.host_contexts):
            assert place is not None
            assert held.get(place, -1) < waits[-1], step
            held[place] = waits[-1]
    assert waits[7] == waits[0]
    assert waits[-1] <= 30 // 8 + 1


def test_results_of_steps_without_a_stream_are_there(session: Session) -> None:
    session.step(ones(1), [3])
    session.counts.waits = 0
    places = set()
    for step in range(4):
        session.step(ones(1), [step])
        places.add(session.counts.contexts)
    assert session.counts.waits == 4, "one a step"
    assert len(places) == 1


def test_a_plan_that_another_thread_lets_go_of_waits_for_a_step(session: Session) -> None:
    """Else it would count as waited for what the step has yet to queue."""
    session.step(ones(1), [3])
    other = session.plans.pop(1)
    session.step(ones(2), [3, 4])
    session.counts.executes, session.counts.hold = 0, 1
    step = threading.Thread(target=session.step, args=(ones(2), [3, 4]))
    step.start()
    while session.counts.executes == 0:
        time.sleep(0.001)
    session.counts.waits = 0
    end = threading.Thread(target=session.library.gdsl_plan_destroy, args=(other,))
    end.start()
    end.join(0.05)
    waits = session.counts.waits
    session.counts.hold = 0
    step.join()
    end.join()
    assert waits == 0
    assert session.counts.waits == 2


def test_operations_end_with_the_last_plan(session: Session) -> None:
    session.step(ones(1), [3])
    session.step(ones(2), [3, 4])
    session.library.gdsl_plan_destroy(session.plans.pop(1))
    session.step(ones(2), [3, 4])
    assert session.counts.setups == 2
    session.close()
    session.step(ones(2), [3, 4])
    assert session.counts.setups == 3


def test_the_abi_is_that_of_the_header(counting: ctypes.CDLL) -> None:
    header = (Path(graphdsl.runtime.__file__).parent / "abi.h").read_text()
    assert f"#define GDSL_ABI_VERSION {counting.gdsl_abi_version()}\n" in header


def refusal(library: ctypes.CDLL, *, kind: bool = True, columns: int = 32,
            w_columns: int = 32) -> str:
    """What is said of x w^T + z of 6 rows."""
    sizes = (ctypes.c_int64(size) for size in (6, columns, w_columns))
    text: str = library.refusal(int(kind), *sizes).decode()
    return text


def test_a_node_that_atb_does_not_make_is_named(counting: ctypes.CDLL) -> None:
    assert refusal(counting, kind=False).startswith(
        "Sum: node 1, Elewise (sum.py:8 <- Rule) of product: f16[rows, 32], z: f16[rows, 32] "
        "cannot be made: ATB error ")


def test_a_node_that_refuses_its_shapes_is_named(counting: ctypes.CDLL) -> None:
    assert refusal(counting) == ""
    assert refusal(counting, w_columns=48).startswith(
        "Sum: node 0, Linear (sum.py:7) refuses x f16[6, 32], w f16[32, 48]: ATB error ")


def test_what_a_view_shows_is_in_the_message(counting: ctypes.CDLL) -> None:
    assert refusal(counting, columns=64).startswith(
        "Sum: node 1, Elewise (sum.py:8 <- Rule) refuses product f16[12, 32], z f16[6, 32]: ")


def test_weights_in_tiles_are_packed(counting: ctypes.CDLL) -> None:
    w = np.arange(32 * 48, dtype=np.uint16).reshape(32, 48)
    packed = np.zeros((3, 32, 16), np.uint16)
    assert counting.gdsl_packed_bytes(0) == packed.nbytes
    assert counting.gdsl_pack(0, ctypes.c_void_p(w.ctypes.data),
                              ctypes.c_void_p(packed.ctypes.data)) == 0
    np.testing.assert_array_equal(packed.transpose(1, 0, 2).reshape(32, 48), w)


@pytest.mark.parametrize(("param", "size", "message"), [
    (1, 0, "Counted: param plain is read as it is"), (2, -1, "Counted: no such param: 2"),
    (-1, -1, "Counted: no such param: -1")])
def test_what_is_not_packed_says_so(counting: ctypes.CDLL, param: int, size: int,
                                    message: str) -> None:
    assert counting.gdsl_packed_bytes(param) == size
    assert counting.gdsl_pack(param, None, None) == 1
    assert counting.gdsl_last_error().decode() == message
