"""Builds for tests of what is around the generated code: its callers, the CLI, the weights' names.
That the code is right as users compile it is what tests/cpu and tests/backends/cpu show."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

HERE = Path(__file__).parent


def quick_compiler() -> str:
    """What CXX is to say: the compiler, told to optimise little. TEST_FLAGS in the environment is
    given to it instead; if that is empty, it compiles as for users."""
    wrapper, compiler = shlex.quote(str(HERE / "quick-compiler")), os.environ.get("CXX") or "g++"
    return compiler if compiler.startswith(wrapper) else f"{wrapper} {compiler}"


def quick_environment() -> dict[str, str]:
    """This environment, with that compiler."""
    return {**os.environ, "CXX": quick_compiler()}
