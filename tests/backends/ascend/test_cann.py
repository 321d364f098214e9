"""What is found of CANN and ATB, and what is wrong with an installation that is not whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from graphdsl.backends.ascend.backend import BACKEND
from graphdsl.backends.ascend.cann import Cann, find_cann, unused_npu
from graphdsl.backends.ascend.compiling import manifest_source
from graphdsl.errors import ToolError


def installed(folder: Path, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.fixture
def atb(tmp_path: Path) -> Path:
    """ATB with both ABIs, as it is installed."""
    for abi in ("cxx_abi_0", "cxx_abi_1"):
        installed(tmp_path / "atb" / abi, "include/atb/atb_infer.h", "lib/libatb.so")
    return tmp_path / "atb"


@pytest.fixture
def ascend(tmp_path: Path) -> Path:
    return installed(tmp_path / "toolkit", "include/acl/acl.h", "lib64/libascendcl.so")


def test_nothing_is_named() -> None:
    assert find_cann({"PATH": "/bin"}, 1) is None
    assert BACKEND.facts({})["emulation"] is True
    (check,) = [c for c in BACKEND.probe({}).checks if c.name == "emulation"]
    assert check.ok
    assert "neither ASCEND_HOME_PATH nor ATB_HOME_PATH is set" in check.detail


def test_an_installation(atb: Path, ascend: Path) -> None:
    environment = {"ATB_HOME_PATH": str(atb / "cxx_abi_1"), "ASCEND_HOME_PATH": str(ascend)}
    found = find_cann(environment, 1)
    assert found == Cann(atb / "cxx_abi_1", ascend, 1)
    assert found.compile_flags == (f"-I{atb}/cxx_abi_1/include", f"-I{ascend}/include",
                                   "-D_GLIBCXX_USE_CXX11_ABI=1")
    assert found.link_flags == (f"-L{atb}/cxx_abi_1/lib", f"-L{ascend}/lib64", "-latb",
                                "-lascendcl")
    before = found.fingerprint()
    (atb / "cxx_abi_1/include/atb/types.h").write_text("// another version\n")
    assert found.fingerprint() != before


def test_tensors_of_an_installation_are_on_the_npu(atb: Path, ascend: Path) -> None:
    abi = f"cxx_abi_{int(torch.compiled_with_cxx11_abi())}"
    facts = BACKEND.facts({"ATB_HOME_PATH": str(atb / abi), "ASCEND_HOME_PATH": str(ascend)})
    assert facts == {"emulation": False, "soc": "910b", "device": "npu"}
    assert "device" not in BACKEND.facts({})


@pytest.mark.parametrize("abi", [0, 1])
def test_the_folder_above_the_abis(abi: int, atb: Path, ascend: Path) -> None:
    found = find_cann({"ATB_HOME_PATH": str(atb), "ASCEND_HOME_PATH": str(ascend)}, abi)
    assert found == Cann(atb / f"cxx_abi_{abi}", ascend, abi)


def refusal(environment: dict[str, str], abi: int = 1) -> str:
    with pytest.raises(ToolError) as caught:
        find_cann(environment, abi)
    return str(caught.value)


def test_one_variable_without_the_other(atb: Path, ascend: Path) -> None:
    found = refusal({"ATB_HOME_PATH": str(atb / "cxx_abi_1")})
    assert found.startswith("CANN: ATB_HOME_PATH is set, but ASCEND_HOME_PATH is not: source ")
    found = refusal({"ASCEND_HOME_PATH": str(ascend)})
    assert found.startswith("ATB: ASCEND_HOME_PATH is set, but ATB_HOME_PATH is not: source ")
    assert found.endswith("or unset ASCEND_HOME_PATH to build for the emulation")


@pytest.mark.parametrize(("missing", "what"), [
    ("atb/cxx_abi_1/include/atb/atb_infer.h", "ATB"), ("toolkit/include/acl/acl.h", "CANN"),
    ("atb/cxx_abi_1/lib/libatb.so", "ATB"), ("toolkit/lib64/libascendcl.so", "CANN")])
def test_a_folder_without_headers_or_libraries(missing: str, what: str, tmp_path: Path, atb: Path,
                                               ascend: Path) -> None:
    (tmp_path / missing).unlink()
    found = refusal({"ATB_HOME_PATH": str(atb), "ASCEND_HOME_PATH": str(ascend)})
    assert found.startswith(f"{what}: A")
    assert f"where there is no {missing.partition('/')[2].removeprefix('cxx_abi_1/')}: " in found


def test_another_abi_than_that_of_torch(atb: Path, ascend: Path) -> None:
    found = refusal({"ATB_HOME_PATH": str(atb / "cxx_abi_0"), "ASCEND_HOME_PATH": str(ascend)})
    assert found == (f"ABI: ATB_HOME_PATH is {atb}/cxx_abi_0, but torch was compiled with "
                     f"_GLIBCXX_USE_CXX11_ABI=1: set ATB_HOME_PATH to {atb}/cxx_abi_1")


def test_findings_of_an_installation(atb: Path, ascend: Path) -> None:
    checks = BACKEND.probe({"ATB_HOME_PATH": str(atb), "ASCEND_HOME_PATH": str(ascend)}).checks
    assert [c.name for c in checks] == ["CANN", "ATB", "ABI", "torch_npu"]
    assert [c.ok for c in checks[:3]] == [True] * 3


def test_an_npu_that_is_not_used(tmp_path: Path) -> None:
    assert unused_npu(tmp_path) is None
    (tmp_path / "davinci_manager").touch()
    assert unused_npu(tmp_path) is None
    (tmp_path / "davinci0").touch()
    check = unused_npu(tmp_path)
    assert check is not None
    assert not check.ok
    assert f"there is an NPU, {tmp_path}/davinci0, but neither" in check.detail


def test_the_manifest_is_an_object_of_its_own() -> None:
    text = manifest_source('{\n "name": "a\\"b"\n}\n', emulated=True)
    assert text == ('extern "C" const char gdsl_manifest_text[];\n'
                    'extern "C" const char gdsl_manifest_text[] =\n'
                    '    "{\\n"\n    " \\"name\\": \\"a\\\\\\"b\\"\\n"\n    "}\\n";\n')
    assert "gdsl_runtime_log" in manifest_source("{}", emulated=False)


def test_the_emulation_is_told_which_soc_it_is() -> None:
    assert 'atb_emulation_set_soc("310p")' in manifest_source('{"soc": "310p"}', emulated=True)
    assert "emulation" not in manifest_source('{"soc": "310p"}', emulated=False)
