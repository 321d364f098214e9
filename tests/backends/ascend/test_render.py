"""The generated C++: readable, the same every time, and clean for a strict compiler."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from rendercase import KV_HEADS, Case, Llama, linear_add, node

import graphdsl.backends.ascend.render as rendering
from graphdsl.backends.ascend.atb import ROWS, DataType, Enum, Graph, Phase, Run, Tensor
from graphdsl.backends.ascend.compiling import GENERATED
from graphdsl.backends.ascend.render import places, render, render_graph, runner_files
from graphdsl.errors import Loc
from graphdsl.expr import Poly
from graphdsl.ir import Affine, Dim

INCLUDES = Path(rendering.__file__).parent / "emulation" / "include"
STRICT = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only")

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def rendered(case: Case) -> dict[str, str]:
    return render(case.program, case.ports, case.dims)


def flowing(name: str, *sizes: int) -> Tensor:
    return Tensor(name, "f16", (ROWS, *sizes))


def test_the_decode_graph_of_llama_reads_like_this(golden: Callable[[str, str], None]) -> None:
    files = rendered(Llama().case())
    golden("ascend/LlamaLayer_decode.cpp", files["src/LlamaLayer_decode.cpp"])


def test_the_tables_of_llama_read_like_this(golden: Callable[[str, str], None]) -> None:
    golden("ascend/LlamaLayer.cpp", rendered(Llama().case())["src/LlamaLayer.cpp"])


def test_there_is_a_file_for_every_graph_and_one_for_the_library() -> None:
    files = rendered(Llama().case())
    graphs = {f"src/LlamaLayer{end}.cpp" for end in ("", "_begin", "_prefill", "_decode")}
    assert files.keys() == graphs | runner_files().keys()
    assert "src/runner/abi.h" in files


def test_the_same_program_gives_the_same_text() -> None:
    assert rendered(Llama().case()) == rendered(Llama().case())


@needs_compiler
@pytest.mark.parametrize("case", [Llama().case(), linear_add("bf16")],
                         ids=["llama", "small"])
def test_a_strict_compiler_has_nothing_to_say(case: Case, tmp_path: Path) -> None:
    for name, text in rendered(case).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    units = sorted(map(str, (tmp_path / "src").rglob("*.cpp")))
    done = subprocess.run(["g++", *STRICT, f"-I{INCLUDES}", *units], capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_flags_whose_defaults_differ_are_always_written() -> None:
    x, w, y = flowing("x", 32), Tensor("w", "f16", (32, 32)), flowing("y", 32)
    bare = Graph("Bare", (x, w), (y,), (node("Linear", 1, (x, w), (y,)),))
    text = render_graph(bare)
    for line in ("transposeA = false", "transposeB = true", "hasBias = false",
                 "outDataType = ACL_DT_UNDEFINED", "enAccum = false"):
        assert f"    param.{line};\n" in text
    biased = replace(bare, nodes=(node("Linear", 1, (x, w), (y,), {"hasBias": True}),))
    assert render_graph(biased).count("hasBias") == 1
    assert "param.hasBias = true;" in render_graph(biased)


@pytest.mark.parametrize(("field", "text"), [
    (True, "true"), (-1, "-1"), (1e-6, "1e-06f"), (0.125, "0.125f"), (2.0, "2.0f"),
    (Enum("K_CACHE_V_CACHE"), "atb::infer::SelfAttentionParam::K_CACHE_V_CACHE"),
    (Enum("ACTIVATION_SWISH", free=True), "atb::infer::ACTIVATION_SWISH"),
    (DataType("f32"), "ACL_FLOAT"), (DataType(""), "ACL_DT_UNDEFINED"), ((2, 0, 1), "{2, 0, 1}")])
def test_fields_are_written_as_cpp(field: rendering.Field, text: str) -> None:
    x, y = flowing("x", 32), flowing("y", 32)
    graph = Graph("One", (x,), (y,), (node("SelfAttention", 1, (x,), (y,), {"it": field}),))
    assert f"    param.it = {text};\n" in render_graph(graph)


def test_a_view_takes_what_is_left_of_the_elements() -> None:
    x, y = flowing("x", 32), flowing("y", 32)
    views = ((ROWS, KV_HEADS, 16), (2, 16, Affine(((ROWS, 2),), 0)), (64,), None)
    graph = Graph("Views", (x,), (y,), tuple(
        node("Elewise", 1, (x,), (y,), views={0: view}) for view in views))
    text = render_graph(graph)
    assert "{View(IN_X, {REST, 2, 16})}" in text
    assert "{View(IN_X, {2, 16, REST})}" in text
    assert "{View(IN_X, {64})}" in text
    assert "{IN_X}" in text


def test_names_that_are_no_identifiers_become_ones() -> None:
    x, y = flowing("layers.0.x", 32), flowing("layers_0_x", 32)
    odd, out = flowing("été", 8), flowing("int", 32)
    graph = Graph("Names", (x, y, odd), (out,), (node("Elewise", 1, (x, y), (out,)),))
    text = render_graph(graph)
    assert "enum Tensor : uint32_t {\n    IN_LAYERS_0_X,\n    IN_LAYERS_0_X_2,\n    IN_T,\n" in text
    assert "  OUT_INT,\n" in text


def test_no_text_of_the_user_ends_a_comment_or_a_string() -> None:
    x, y = flowing('x"\\', 32), flowing("y", 32)
    made = replace(node("Elewise", 3, (x,), (y,), origin="<- A\nB\\"), loc=Loc('a"b\\.py', 3))
    text = render_graph(Graph("Odd", (x,), (y,), (made,)))
    assert '"x__: f16[rows, 32]"' in text
    assert "  // a_b_.py:3 <- A_B_\n" in text


def test_sizes_are_sums_of_dims() -> None:
    case = linear_add()
    past, tokens = Dim("past"), Dim("tokens")
    longer = Tensor("z", "f16", (Affine(((past, 1), (tokens, 2)), 3), 32))
    ports = tuple(longer if t.name == "z" else t for t in case.program.ports)
    text = rendered(replace(case, program=replace(case.program, ports=ports)))["src/Small.cpp"]
    assert '{"z", ACL_FLOAT16, ACL_FORMAT_ND, {past_ + 2 * tokens_ + 3, 32}},' in text


def test_a_dim_of_the_manifest_may_have_the_name_of_one_of_ours() -> None:
    case, rows = linear_add(), Dim("rows")
    program = replace(case.program, sizes=((ROWS, Poly.of(rows) * 2),))
    text = render(program, case.ports, (rows,))["src/Small.cpp"]
    assert "const int64_t rows_ = dims[0];" in text
    assert "const int64_t rows = 2 * rows_;" in text


def kept(count: int, size: int = 32) -> tuple[Tensor, ...]:
    return tuple(flowing(f"t{i}", size) for i in range(count))


def chain(names: str) -> Phase:
    """Runs a, b, c: each reads one letter's tensor and writes the next."""
    x, y = flowing("x", 32), flowing("y", 32)
    graph = Graph("Link", (x,), (y,), (node("Elewise", 1, (x,), (y,)),))
    return Phase("prefill", tuple(Run(graph, (f"t{a}", f"t{b}"))
                                  for a, b in pairwise(names)))


def test_kept_tensors_share_memory_when_none_is_alive_with_another() -> None:
    program = replace(linear_add().program, kept=kept(5), phases=(chain("01234"),))
    assert places(program) == [0, 1, 0, 1, 0]


def test_kept_tensors_of_other_sizes_share_nothing() -> None:
    tensors = (*kept(2), flowing("t2", 64), flowing("t3", 32))
    program = replace(linear_add().program, kept=tensors, phases=(chain("0123"),))
    assert places(program) == [0, 1, 2, 0]


def test_memory_is_shared_only_where_every_phase_allows_it() -> None:
    program = replace(linear_add().program, kept=kept(3),
                      phases=(chain("012"), replace(chain("0120"), name="decode")))
    assert places(program) == [0, 1, 2]


def test_no_layer_has_the_name_of_the_source_that_includes_its_own() -> None:
    assert not Path(GENERATED).stem.isidentifier()
