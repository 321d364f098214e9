"""What graphs get from the program, and in which order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from wrong_graphs import BIAS, GAMMA, W, X, linear, rms_norm, t

from graphdsl.backends.ascend.atb import ROWS, SEQUENCES, Phase, Prepared, Program, Run, Tensor
from graphdsl.backends.ascend.checks import check_program
from graphdsl.errors import GraphError

NORM, LINEAR = replace(rms_norm(), name="Layer_begin"), linear()
LENGTHS = t("lengths", SEQUENCES, dtype="i32", host=True)
BEGIN = Run(NORM, ("x", "gamma", "normed"))
END = Run(LINEAR, ("normed", "w", "output0"))
PORTS = (X, GAMMA, W, t("output0", ROWS, 96))
NORMED = replace(X, name="normed")


def program(runs: tuple[Run, ...] = (BEGIN, END), ports: tuple[Tensor, ...] = PORTS,
            kept: tuple[Tensor, ...] = (NORMED,), dtype: str = "f16") -> Program:
    return Program("Layer", ports, (Prepared("lengths", LENGTHS),), kept,
                   (Phase("decode", runs),), dtype)


def test_right() -> None:
    check_program(program(), "910b")


@pytest.mark.parametrize(("wrong", "part"), [
    (program((END, BEGIN)), "Layer_decode in decode: 'normed' is read before a graph"),
    (program((BEGIN,)), "Layer in decode: no graph writes 'output0'"),
    (program((BEGIN, replace(END, bound=("normed", "w")))), "2 tensors are bound, wanted 3"),
    (program((BEGIN, replace(END, bound=("normed", "v", "output0")))),
     "'v' is bound to 'w' f16[96, 64], but the program has no such tensor"),
    (program((replace(BEGIN, bound=("x", "w", "normed")), END)),
     "'w' f16[96, 64] is bound to 'gamma' f16[64]"),
    (program(kept=(replace(NORMED, dtype="bf16"),)), "'normed' bf16[rows, 64] is bound to 'y'"),
    (program(ports=(*PORTS, NORMED)), "two tensors are called 'normed'"),
    (program((BEGIN, Run(linear(bias=None, hasBias=True), END.bound))), "wanted 3: x, w, bias"),
], ids=["order", "result", "too few", "unknown", "shape", "dtype", "name", "node"])
def test_wrong(wrong: Program, part: str) -> None:
    with pytest.raises(GraphError) as found:
        check_program(wrong, "910b")
    assert part in str(found.value)


def test_a_host_tensor_is_bound_to_one_with_host_values() -> None:
    graph = replace(LINEAR, inputs=(*LINEAR.inputs, replace(LENGTHS, name="n")))
    runs = (BEGIN, Run(graph, ("normed", "w", "lengths", "output0")))
    check_program(program(runs), "910b")
    device = program((BEGIN, Run(graph, ("normed", "w", "n", "output0"))),
                     (*PORTS, t("n", SEQUENCES, dtype="i32")))
    with pytest.raises(GraphError, match=r"'n' i32\[sequences\] without host values"):
        check_program(device, "910b")


def test_bf16_is_refused_on_310p() -> None:
    with pytest.raises(GraphError, match="Layer: bf16 on 310p, which has none\n  hint: --dtype"):
        check_program(program(dtype="bf16"), "310p")


def test_a_bias_may_be_a_row() -> None:
    row = t("bias", 1, 96)
    runs = (BEGIN, Run(linear(bias=row), ("normed", "w", "bias", "output0")))
    check_program(program(runs, (*PORTS, row)), "910b")
    with pytest.raises(GraphError, match=r"'bias' f16\[96\] is bound to 'bias' f16\[1, 96\]"):
        check_program(program(runs, (*PORTS, BIAS)), "910b")
