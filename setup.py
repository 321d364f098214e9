"""What pyproject.toml cannot say: the extension module, and that graphdsl.backends is backends/."""

from pybind11.setup_helpers import Pybind11Extension
from setuptools import find_packages, setup

NATIVE = Pybind11Extension(
    "graphdsl.runtime._native",
    ["graphdsl/runtime/native.cpp"],
    depends=[f"graphdsl/runtime/{name}" for name in ("abi.h", "native_held.hpp",
                                                     "native_library.hpp")],
    cxx_std=17,
    extra_compile_args=["-O2", "-Wall", "-Wextra", "-Werror"],
)

setup(
    packages=[*find_packages(include=["graphdsl", "graphdsl.*"]),
              *(f"graphdsl.{name}" for name in find_packages(include=["backends", "backends.*"]))],
    package_dir={"graphdsl.backends": "backends"},
    package_data={"graphdsl": ["py.typed"],
                  "graphdsl.runtime": ["abi.h", "native.cpp", "native_*.hpp", "torch_class.cpp",
                                       "torch_*.hpp", "_native.pyi"],
                  "graphdsl.seeing": ["templates/*"],
                  "graphdsl.backends.cpu": ["templates/*.j2", "kernels/*.hpp",
                                            "roofline/*.cpp"],
                  "graphdsl.backends.ascend": ["templates/*.j2", "runner/*",
                                               "emulation/include/*/*.h", "emulation/src/*",
                                               "emulation/src/*/*"]},
    ext_modules=[NATIVE],
)
