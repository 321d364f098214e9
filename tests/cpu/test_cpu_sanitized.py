"""Generated libraries, quantised weights among them, under AddressSanitizer and
UndefinedBehaviorSanitizer, and their thread teams under ThreadSanitizer."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from quick import quick_environment
from sanitizecase import Sanitized
from torch import Tensor

from graphdsl.backends.cpu.backend import CPU, FLAGS
from graphdsl.builder import BuildOptions, build_graph
from graphdsl.ir import Graph
from graphdsl.layer import trace
from graphdsl.models.llama import Config, Llama
from graphdsl.passes.quantise import quantised
from graphdsl.passes.samples import samples
from graphdsl.quant import Quant
from graphdsl.reference import TOLERANCE, error_of
from graphdsl.runtime.caches import Filled
from graphdsl.runtime.operator import Operator

pytestmark = [
    pytest.mark.full,
    pytest.mark.sanitize,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]

HERE = Path(__file__).parent
TEAM = HERE.parent / "backends" / "cpu" / "plain_threads.hpp"
LAYER = HERE.parents[1] / "examples" / "llama_layer.py"
SMALL_LAYER = "--set hidden=64 --set heads=4 --set kv_heads=2 --set head_dim=16 --set ffn=96"
CALLS = ("--batch 2 --tokens 5", "--batch 2 --tokens 1 --past 130", "--tokens 70 --past 3")
LIBRARIES = (
    "", "--dtype bf16", "--quantize int8 --dtype bf16", "--quantize int8 --act int8",
    "--quantize int4:32 --dtype bf16", "--quantize int4 --act int8 --dtype bf16",
    "--quantize int4:32+offset --pass kv_layout:policy=paged,block=16,storage=int8",
    "--pass kv_layout:policy=shift,order=sbnd --dtype bf16",
)


def test_cpu_libraries_sanitized(tmp_path: Path) -> None:
    """Weights are quantised, packed and multiplied, in prefill and decode."""
    sanitized = Sanitized(tmp_path)
    sanitized.build([f"build {LAYER} {SMALL_LAYER} {made}" for made in LIBRARIES])
    built = [path.read_bytes() for path in sanitized.cache.glob("*/library.so")]
    assert len(built) == len(LIBRARIES)
    assert all(b"__asan_" in library and b"__ubsan_" in library for library in built)
    sanitized.run([f"run {LAYER} {SMALL_LAYER} {made} {sizes}" for made in LIBRARIES
                   for sizes in CALLS])


MODEL = Config(vocab=51, hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, ffn=96)
STEPS = ({"batch": 2, "tokens": 1, "slots": 300}, {"batch": 1, "tokens": 37, "slots": 64})


def model(form: str, dtype: str) -> Graph:
    """A small model, whose weights are in one format if there is one."""
    graph = trace(Llama(MODEL), dtype)
    return quantised(graph, lambda name, kind: Quant.parse(form)) if form else graph


def written(path: Path, dims: Sequence[int], tensors: Sequence[Tensor]) -> None:
    """A call as recorded_call.cpp reads it."""
    parts = [struct.pack(f"{len(dims) + 2}q", len(dims), *dims, len(tensors))]
    for tensor in tensors:
        parts += [struct.pack("q", tensor.nbytes), content(tensor)]
    path.write_bytes(b"".join(parts))


def content(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def read(path: Path, like: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that a call left, of these shapes and dtypes."""
    left, found = bytearray(path.read_bytes()), []
    for tensor in like:
        part, left = left[:tensor.nbytes], left[tensor.nbytes:]
        found.append(torch.frombuffer(part, dtype=tensor.dtype).reshape(tensor.shape))
    assert not left
    return found


def check_step(driver: Path, operator: Operator, graph: Graph, dims: Mapping[str, int],
               dtype: str) -> None:
    """A step in the driver, whose results and caches are those of the operator."""
    given = samples(graph, 1, dims)
    filled = Filled.of(operator.manifest, given.inputs, given.dims)
    inputs, weights = filled.inputs(given.inputs), operator.pack_weights(given.params)
    caches = filled.state(given.state)
    state = [caches[port.name] for port in operator.state]
    sizes = operator.check(inputs, state)
    outputs = [torch.zeros(port.sizes(sizes), dtype=port.dtype) for port in operator.outputs]
    tensors, call = [*inputs, *state, *weights, *outputs], driver.with_suffix(".call")
    written(call, [sizes[dim.name] for dim in operator.dims], tensors)
    done = subprocess.run([str(driver), str(call), "3"], capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[:4000]
    after = read(call.with_suffix(".call.after"), tensors)
    wanted = operator.run(inputs, weights, state)
    for found, ours in zip((*after[len(inputs):-len(weights) - len(outputs)],
                            *after[-len(outputs):]), (*state, *wanted), strict=True):
        assert error_of(found, ours) <= TOLERANCE[dtype]


DRIVERS = {
    "threads": ("-O1", "-g", "-fsanitize=thread", f'-DGD_RUN_TEAM="{TEAM}"'),
    "memory": ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
}
KINDS = (("", "f32"), ("", "bf16"), ("int8", "bf16"), ("int4:32", "bf16"),
         ("int4:32+offset", "f32"), ("int8:32*int8", "bf16"), ("int4:32*int8", "f32"))


@pytest.mark.parametrize("flags", DRIVERS)
@pytest.mark.parametrize(("form", "dtype"), KINDS)
def test_steps_of_a_model(form: str, dtype: str, flags: str, tmp_path: Path) -> None:
    """Prefill and decode by three threads, in buffers of exact sizes."""
    graph = model(form, dtype)
    options = BuildOptions(cache=tmp_path / "cache", environment=quick_environment())
    built = build_graph(graph, replace(options, dtype=dtype))
    driver, sources = tmp_path / "driver", built.path / "src"
    given = [flag for flag in FLAGS if flag not in ("-O3", "-shared", "-fPIC")]
    done = subprocess.run(["g++", *given, *CPU().chosen.flags, *DRIVERS[flags],
                           f"-I{sources / 'kernels'}", *map(str, sources.glob("*.cpp")),
                           str(HERE / "recorded_call.cpp"), "-o", str(driver)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]
    operator = Operator(built.path)
    for dims in STEPS:
        check_step(driver, operator, graph, dims, dtype)
