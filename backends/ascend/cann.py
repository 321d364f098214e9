"""Where CANN and ATB are, by the variables that their set_env.sh scripts set; without them, builds
use the emulation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from graphdsl.backend import Check
from graphdsl.errors import ToolError
from graphdsl.lazy import torch

ATB, ASCEND = "ATB_HOME_PATH", "ASCEND_HOME_PATH"
SCRIPTS = {ATB: "/usr/local/Ascend/nnal/atb/set_env.sh",
           ASCEND: "/usr/local/Ascend/ascend-toolkit/set_env.sh"}
HEADERS = {ATB: "include/atb/atb_infer.h", ASCEND: "include/acl/acl.h"}
LIBRARIES = {ATB: "lib/libatb.so", ASCEND: "lib64/libascendcl.so"}
TITLES = {ATB: "ATB", ASCEND: "CANN"}
ABI_FOLDERS = ("cxx_abi_0", "cxx_abi_1")


@dataclass(frozen=True)
class Cann:
    """The folders of an installation, and the C++ ABI that its ATB was made with."""

    atb: Path
    ascend: Path
    abi: int

    @property
    def compile_flags(self) -> tuple[str, ...]:
        return (f"-I{self.atb / 'include'}", f"-I{self.ascend / 'include'}",
                f"-D_GLIBCXX_USE_CXX11_ABI={self.abi}")

    @property
    def link_flags(self) -> tuple[str, ...]:
        return (f"-L{self.atb / 'lib'}", f"-L{self.ascend / 'lib64'}", "-latb", "-lascendcl")

    def fingerprint(self) -> str:
        """The flags, and the headers of ATB: another version has others."""
        digest = hashlib.sha256()
        for path in sorted((self.atb / "include" / "atb").rglob("*.h")):
            digest.update(path.read_bytes())
        return "\n".join([*self.compile_flags, *self.link_flags, digest.hexdigest()])


def find_cann(environment: Mapping[str, str], torch_abi: int | None = None) -> Cann | None:
    """The installation that the environment names, or None where it names none.

    Raises ToolError, with what to do, for one that is not whole or does not fit torch.
    """
    if not is_named(environment):
        return None
    abi = abi_of_torch() if torch_abi is None else torch_abi
    fault = next((check for check in findings(environment, abi) if not check.ok), None)
    if fault:
        raise ToolError(f"{fault.name}: {fault.detail}")
    return Cann(_atb_folder(Path(environment[ATB]), abi), Path(environment[ASCEND]), abi)


def is_named(environment: Mapping[str, str]) -> bool:
    """Whether the environment names any part of an installation."""
    return any(environment.get(name) for name in (ATB, ASCEND))


def abi_of_torch() -> int:
    """The value of _GLIBCXX_USE_CXX11_ABI that torch was compiled with."""
    return int(torch.compiled_with_cxx11_abi())


def findings(environment: Mapping[str, str], torch_abi: int) -> Iterator[Check]:
    """What is found of an installation that the environment names, and what is wrong with it."""
    for name in (ASCEND, ATB):
        yield _part(name, environment, torch_abi)
    if environment.get(ATB):
        yield _abi(Path(environment[ATB]), torch_abi)


def npu_of_torch() -> Check:
    """Whether torch can use NPUs."""
    found = find_spec("torch_npu") is not None
    return Check("torch_npu", found, "installed" if found else
                 "not installed; tensors on an NPU need it: pip install torch-npu, in the version "
                 "of torch")


def unused_npu(devices: Path = Path("/dev")) -> Check | None:
    """An NPU of this machine that builds do not use, for the environment names no CANN."""
    found = sorted(devices.glob("davinci[0-9]*"))
    if not found:
        return None
    return Check("CANN", False, f"there is an NPU, {found[0]}, but neither {ASCEND} nor {ATB} is "
                 f"set: source {SCRIPTS[ASCEND]} and {SCRIPTS[ATB]}")


def _part(name: str, environment: Mapping[str, str], torch_abi: int) -> Check:
    """One variable and the folder that it names."""
    value, other = environment.get(name), ASCEND if name == ATB else ATB
    if not value:
        return Check(TITLES[name], False, f"{other} is set, but {name} is not: source "
                     f"{SCRIPTS[name]}, or unset {other} to build for the emulation")
    folder = _atb_folder(Path(value), torch_abi) if name == ATB else Path(value)
    for wanted in (HEADERS[name], LIBRARIES[name]):
        if not (folder / wanted).is_file():
            return Check(TITLES[name], False, f"{name} is {value}, where there is no {wanted}: "
                         f"source {SCRIPTS[name]}, or unset {ATB} and {ASCEND} to build for the "
                         "emulation")
    return Check(TITLES[name], True, str(folder))


def _atb_folder(value: Path, torch_abi: int) -> Path:
    """The folder of one ABI; where the variable names the one above them, that of torch's."""
    inner = value / ABI_FOLDERS[torch_abi]
    return inner if value.name not in ABI_FOLDERS and inner.is_dir() else value


def _abi(value: Path, torch_abi: int) -> Check:
    """Whether ATB and torch have one C++ ABI, as far as the folder's name says."""
    folder = _atb_folder(value, torch_abi)
    wanted = ABI_FOLDERS[torch_abi]
    if folder.name in ABI_FOLDERS and folder.name != wanted:
        return Check("ABI", False, f"{ATB} is {value}, but torch was compiled with "
                     f"_GLIBCXX_USE_CXX11_ABI={torch_abi}: set {ATB} to {folder.parent / wanted}")
    return Check("ABI", True, f"_GLIBCXX_USE_CXX11_ABI={torch_abi}, as torch has it")


__all__ = ["Cann", "abi_of_torch", "find_cann", "findings", "is_named", "npu_of_torch",
           "unused_npu"]
