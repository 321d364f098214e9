"""The ascend backend behind the command line: what is refused, what is emitted, what runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from graphdsl import GraphError, build, load
from graphdsl.backend import find_backend
from graphdsl.backends.ascend.emulation_build import INCLUDE
from graphdsl.cli import main
from graphdsl.models.llama import Config, LlamaLayer

ROOT = Path(__file__).parents[3]
LAYER = str(ROOT / "examples" / "llama_layer.py")
SMALL = ["--set", "hidden=64", "--set", "heads=4", "--set", "kv_heads=2", "--set", "head_dim=16",
         "--set", "ffn=96"]
PINNED = '''\
from graphdsl import KVCache, Layer
from graphdsl.ops import attention


class Pinned(Layer):
    """Attention over a cache of its own layout."""

    signature = ("q[batch, tokens, 2, 16], k[batch, tokens, 2, 16], v[batch, tokens, 2, 16], "
                 "positions[batch, tokens]:i32 -> y[batch, tokens, 2, 16]")

    def __init__(self):
        self.kv = KVCache(2, 16, layout="LAYOUT")

    def forward(self, q, k, v, positions):
        kv = self.kv.append(k, v, positions)
        return attention(q, kv.k, kv.v, positions)
'''
NORM = '''\
from graphdsl import Layer, Param
from graphdsl.ops import rms_norm


class Norm(Layer):
    """A norm."""

    signature = "x[batch, tokens, 32] -> y[batch, tokens, 32]"

    def __init__(self):
        self.weight = Param(32)

    def forward(self, x):
        return rms_norm(x, self.weight, eps=1e-6)
'''
DESTROY = """
namespace atb {
class Operation;
int DestroyOperation(Operation*) { return 0; }
}
"""
FREE = 'extern "C" int aclrtFree(void*) { return 0; }\n'

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(emulation: Path, monkeypatch: pytest.MonkeyPatch,
            capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in this process: its exit code and what it printed."""
    for name in ("ATB_HOME_PATH", "ASCEND_HOME_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GRAPHDSL_CACHE", str(emulation))

    def run(*argv: str) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = main(argv)
        except SystemExit as stop:
            code = int(str(stop.code))
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return run


def sources(build: Path) -> dict[str, bytes]:
    return {str(p.relative_to(build)): p.read_bytes()
            for p in sorted((build / "src").rglob("*")) if p.is_file()}


@pytest.mark.parametrize(("argv", "message", "hint"), [
    ("--backend ascend --dtype f32",
     "the ascend backend builds no layers of f32: ATB's RmsNorm, Rope, attention and MUL take f16 "
     "and bf16 only", "--dtype f16"),
    ("--backend ascend --soc 310p --dtype bf16",
     "the ascend backend builds no layers of bf16: a 310p has none", "--dtype f16"),
    ("--backend ascend --soc 950", "no SoC 950", "SoCs: 910b, 310p"),
    ("--soc 910b", "--soc 910b: the cpu backend has no SoCs to choose from", "leave it out"),
    ("--backend ascend --pass kv_layout:policy=shift", "the ascend backend has no shift caches",
     "policies: contiguous, paged"),
    ("--backend ascend --pass kv_layout:storage=int8", "the ascend backend has no int8 storage",
     "storages: that of the dtype"),
    ("--backend ascend --soc 310p --pass kv_layout:storage=int8", "has no int8 storage",
     "storages: nz"),
    ("--backend ascend --pass kv_layout:order=bnsd",
     "the ascend backend has no caches in the order bnsd", "orders: bsnd"),
    ("--backend ascend --pass kv_layout:block=0", "a block has at least 1 slot",
     "the default is 128"),
    ("--backend ascend --pass kv_layout:policy=contiguous,block=64",
     "only paged caches have blocks", "--pass kv_layout:policy=paged,block=64")])
@pytest.mark.parametrize("verb", ["build", "explain"])
def test_refused(verb: str, argv: str, message: str, hint: str, command: Command) -> None:
    code, _, error = command(verb, LAYER, *SMALL, *argv.split())
    assert code == 2
    assert message in error
    assert error.rstrip().endswith(f"hint: {hint}")


@pytest.mark.parametrize("argv", ["--backend ascend --dtype f32", "--soc 910b",
                                  "--backend ascend --soc 950"])
@pytest.mark.parametrize("verb", ["show", "run", "bench", "generate"])
def test_every_command_refuses_alike(verb: str, argv: str, command: Command) -> None:
    what = ["nowhere", "--prompt", "x"] if verb == "generate" else [LAYER]
    assert command(verb, *what, *argv.split()) == (2, "", command("build", LAYER,
                                                                  *argv.split())[2])


@pytest.mark.parametrize(("soc", "layout", "message"), [
    ("910b", "bnsd:paged/128", "no caches in the order bnsd"),
    ("910b", "bsnd:paged/128:nz", "no nz storage"),
    ("310p", "bsnd:paged/128", "no caches without a storage"),
    ("910b", "bsnd:shift", "no shift caches")])
def test_pinned_layouts_are_refused_at_their_line(soc: str, layout: str, message: str,
                                                  tmp_path: Path, command: Command) -> None:
    (tmp_path / "pinned.py").write_text(PINNED.replace("LAYOUT", layout))
    code, _, error = command("build", str(tmp_path / "pinned.py"), "--backend", "ascend", "--soc",
                             soc)
    assert code == 2
    assert error.startswith(f"error: pinned.py:12: the ascend backend has {message}")


def test_socs_from_python() -> None:
    assert find_backend("ascend").target == find_backend("ascend", "910b").target
    assert find_backend("ascend", "310p").target.kv_storage == "nz"
    with pytest.raises(GraphError, match="no SoC 910c"):
        find_backend("ascend", "910c")
    layer = LlamaLayer(Config(hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=96))
    with pytest.raises(GraphError, match="--soc 910b: the cpu backend has no SoCs"):
        build(layer, soc="910b")
    with pytest.raises(GraphError, match="no layers of bf16: a 310p has none"):
        build(layer, "ascend", "bf16", soc="310p")


def emitted(out: str) -> Path:
    return Path(out.rsplit(": ", 1)[1].strip())


def test_emit_only_needs_no_compiler(tmp_path: Path, command: Command,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """And gives the sources of a full build, with CANN or without."""
    full = command("build", LAYER, "--backend", "ascend", *SMALL)
    assert full[0] == 0, full
    assert "prefill 1" in full[1]
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setenv("AR", "/nowhere/ar")
    plain = command("build", LAYER, "--backend", "ascend", *SMALL, "--emit-only")
    assert plain[0] == 0, plain
    cann = {"ATB_HOME_PATH": ("include/atb/atb_infer.h", "lib/libatb.so"),
            "ASCEND_HOME_PATH": ("include/acl/acl.h", "lib64/libascendcl.so")}
    for name, files in cann.items():
        for file in files:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).touch()
        monkeypatch.setenv(name, str(tmp_path / name))
    real = command("build", LAYER, "--backend", "ascend", *SMALL, "--emit-only")
    folders = [emitted(out) for _, out, _ in (full, plain, real)]
    assert sources(folders[0]) == sources(folders[1]) == sources(folders[2])
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in folders]
    assert [m["emulation"] for m in manifests] == [True, True, False]
    assert [m.get("device") for m in manifests] == [None, None, "npu"]
    for manifest in manifests:
        assert [manifest[key] for key in ("backend", "dtype", "soc")] == ["ascend", "f16", "910b"]
        assert manifest["features"][0] == "910b"
        assert manifest["state"][0]["layout"] == {"order": "bsnd", "policy": "paged", "block": 128,
                                                  "storage": ""}


def test_half_an_installation_is_refused(command: Command, monkeypatch: pytest.MonkeyPatch,
                                         tmp_path: Path) -> None:
    monkeypatch.setenv("ATB_HOME_PATH", str(tmp_path))
    code, _, error = command("build", LAYER, "--backend", "ascend", *SMALL)
    assert code == 3
    assert "ATB_HOME_PATH is set, but ASCEND_HOME_PATH is not" in error
    code, out, _ = command("doctor")
    assert code == 0
    assert "absent   ascend: CANN: ATB_HOME_PATH is set, but ASCEND_HOME_PATH is not" in out
    last = out.splitlines()[-1]
    assert last.startswith("everything that the cpu backend needs is there; absent: ")
    assert "ascend: CANN, ascend: ATB" in last


@pytest.mark.parametrize("argv", ["--batch 1 --tokens 5", "--batch 2 --tokens 5",
                                  "--batch 2 --tokens 1 --past 130",
                                  "--pass kv_layout:policy=contiguous --batch 2 --tokens 3 "
                                  "--past 4"])
def test_run(argv: str, command: Command) -> None:
    code, out, error = command("run", LAYER, "--backend", "ascend", *SMALL, *argv.split())
    assert (code, error) == (0, ""), out
    assert "(tolerance 0.005), 0 of " in out


def test_padding_of_contiguous_caches_is_refused(command: Command) -> None:
    out = command("build", LAYER, "--backend", "ascend", *SMALL, "--pass",
                  "kv_layout:policy=contiguous")[1]
    operator = load(emitted(out))
    operator.bind({w["name"]: torch.zeros(w["shape"], dtype=torch.float16)
                   for w in operator.manifest["weights"]})
    x, positions = torch.zeros(1, 2, 64, dtype=torch.float16), torch.tensor([[-1, 0]]).int()
    with pytest.raises(GraphError, match="policy=paged"):
        operator(x, positions, state=operator.new_state(1, 8))


def test_explain_and_show(command: Command) -> None:
    code, out, _ = command("explain", LAYER, "--backend", "ascend", *SMALL)
    assert code == 0
    assert "\natb: prefill " in out
    code, out, _ = command("show", LAYER, "--backend", "ascend", *SMALL, "--after", "memory")
    assert code == 0
    assert "swiglu(" in out
    code, out, _ = command("show", LAYER, "--backend", "ascend", *SMALL, "--all", "--format",
                           "html")
    assert code == 0
    assert "atb::infer::RmsNormParam" in out


def test_a_compiler_that_fails(command: Command, monkeypatch: pytest.MonkeyPatch,
                               tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text('#!/bin/sh\ncase "$*" in *--version*) echo broken; exit 0;; esac\n'
                      "echo failure >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    code, _, error = command("build", LAYER, "--backend", "ascend", *SMALL)
    assert code == 3
    assert error.startswith("error: the emulation of ATB does not compile\n")
    assert "  | failure" in error


def test_a_build_against_an_installation(command: Command, monkeypatch: pytest.MonkeyPatch,
                                         tmp_path: Path) -> None:
    """The headers are those of the emulation, and the libraries have one function each: what is
    tested is that both are found, and that nothing of the emulation is linked."""
    homes = {"ATB_HOME_PATH": ("atb", "lib/libatb.so", DESTROY),
             "ASCEND_HOME_PATH": ("acl", "lib64/libascendcl.so", FREE)}
    for name, (headers, library, source) in homes.items():
        home = tmp_path / name
        (tmp_path / "one.cpp").write_text(source)
        shutil.copytree(INCLUDE / headers, home / "include" / headers)
        (home / library).parent.mkdir()
        subprocess.run(["g++", "-shared", "-o", str(home / library), str(tmp_path / "one.cpp")],
                       check=True)
        monkeypatch.setenv(name, str(home))
    (tmp_path / "norm.py").write_text(NORM)
    code, out, error = command("build", str(tmp_path / "norm.py"), "--backend", "ascend")
    assert (code, error) == (0, ""), out
    library = (emitted(out) / "library.so").read_bytes()
    assert b"libatb.so" in library
    assert b"libascendcl.so" in library
    assert b"atb_emulation" not in library
    assert json.loads((emitted(out) / "manifest.json").read_text())["emulation"] is False
    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    monkeypatch.setitem(sys.modules, "torch_npu", None)
    with pytest.raises(GraphError, match="Norm: its tensors are on npu, which needs torch_npu, and "
                                         "that is not installed"):
        load(emitted(out))
    monkeypatch.setitem(sys.modules, "torch_npu", SimpleNamespace(npu=SimpleNamespace()))
    with pytest.raises(GraphError, match=r"does not load: libatb\.so: cannot open shared object"):
        load(emitted(out))


def test_passes_of_the_backend_are_shown_explained_and_have_options(command: Command) -> None:
    options = [LAYER, *SMALL, "--backend", "ascend", "--pass", "angle_table:rows=77"]
    _, out, _ = command("show", *options, "--after", "angle_table")
    assert "param angles.cos.0 : f32[77, 16]" in out.replace("%", "")
    _, out, _ = command("explain", *options, "--rule", "AngleTable")
    assert out.endswith("AngleTable fired twice, nearly 0 times\n")
    code, _, error = command("show", LAYER, "--after", "angle_table")
    assert code == 2
    assert "angle_table" not in error.partition("hint")[2]
    code, _, error = command("build", *options[:-1], "angle_table:rows=0")
    assert (code, "--pass angle_table:rows=0: wanted 1 to 1048576" in error) == (2, True)
