"""What runs the same model: ours and its peers, each behind the same few calls."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

import graphdsl


@dataclass(frozen=True)
class Given:
    """The model's files, made where a side asks for them, and the threads of every side."""

    files: Any
    threads: int
    capacity: int


class Side(ABC):
    """`open` takes everything from the file to a model that can run."""

    weights: str
    package: str
    compiles = False
    """What is opened a second time is not what it was the first time: measured once."""

    def __init__(self, given: Given) -> None:
        self.given = given

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def version(self) -> str:
        return importlib.metadata.version(self.package)

    @abstractmethod
    def open(self) -> None: ...

    @abstractmethod
    def prefill(self, ids: list[int]) -> torch.Tensor | None:
        """Logits [vocab] behind ids in an empty cache, or nothing where a side gives none."""

    @abstractmethod
    def run(self, ids: list[int], steps: int) -> tuple[float, float]:
        """Seconds of the prompt, and of each of the steps behind it."""


class Stepped(Side):
    """A side that takes one more token behind those of `prefill` when it is told to."""

    @abstractmethod
    def decode(self, token: int) -> None: ...

    def run(self, ids: list[int], steps: int) -> tuple[float, float]:
        begin = time.perf_counter()
        self.prefill(ids)
        prefill = time.perf_counter() - begin
        begin = time.perf_counter()
        for _ in range(steps):
            self.decode(ids[0])
        return prefill, (time.perf_counter() - begin) / steps


class Ours(Stepped):
    """`weights` is a kind of GGUF file, taken as it is, or a format to quantise bf16 weights to;
    `*int8` behind it rounds activations to int8."""

    package = "graphdsl"

    def __init__(self, given: Given, weights: str) -> None:
        super().__init__(given)
        self.weights = weights

    @property
    def name(self) -> str:
        return "graphdsl"

    def open(self) -> None:
        kind, _, act = self.weights.partition("*")
        is_file = kind in self.given.files.kinds
        path = self.given.files.gguf(kind if is_file else "BF16")
        self.model = graphdsl.load_model(path, dtype="bf16", act=act or None,
                                         quantize="file" if is_file else kind)
        assert self.model.operator

    def prefill(self, ids: list[int]) -> torch.Tensor:
        self.session = self.model.start(1, self.given.capacity)
        self.length = len(ids)
        positions = torch.arange(self.length, dtype=torch.int32)[None]
        return self.session.step(torch.tensor([ids]), positions)[0].float()

    def decode(self, token: int) -> None:
        at = torch.tensor([[self.length]], dtype=torch.int32)
        self.session.step(torch.tensor([[token]]), at)
        self.length += 1


class Transformers(Stepped):
    """transformers' own model, eager."""

    package, weights = "transformers", "bf16"

    @property
    def name(self) -> str:
        return "transformers eager"

    def open(self) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            self.given.files.folder(), dtype=torch.bfloat16).eval()
        self.call: Any = self.model

    def prefill(self, ids: list[int]) -> torch.Tensor:
        self.cache = self.new_cache()
        logits: torch.Tensor = self._step(ids)
        return logits

    def new_cache(self) -> Any:
        return transformers.DynamicCache(config=self.model.config)

    def decode(self, token: int) -> None:
        self._step([token])

    def _step(self, ids: list[int]) -> Any:
        out = self.call(torch.tensor([ids]), past_key_values=self.cache, use_cache=True,
                        logits_to_keep=1)
        return out.logits[0, -1].float()


class Compiled(Transformers):
    """The same through torch.compile, with a cache of fixed size."""

    package = "torch"
    compiles = True

    @property
    def name(self) -> str:
        return "torch.compile"

    def open(self) -> None:
        super().open()
        self.call = torch.compile(self.model)
        self.static = transformers.StaticCache(config=self.model.config,
                                               max_cache_len=self.given.capacity)

    def new_cache(self) -> Any:
        self.static.reset()
        return self.static


class LlamaCpp(Stepped):
    """llama.cpp through llama-cpp-python."""

    package = "llama_cpp_python"

    def __init__(self, given: Given, weights: str) -> None:
        super().__init__(given)
        self.weights = weights

    @property
    def name(self) -> str:
        return "llama.cpp"

    def open(self) -> None:
        import llama_cpp

        self.model = llama_cpp.Llama(
            str(self.given.files.gguf(self.weights)), n_ctx=self.given.capacity, n_batch=512,
            n_ubatch=512, n_threads=self.given.threads, n_threads_batch=self.given.threads,
            n_gpu_layers=0, verbose=False)
        self.logits = llama_cpp.llama_get_logits_ith

    def prefill(self, ids: list[int]) -> torch.Tensor:
        self.model.reset()
        self.model.eval(ids)
        found = self.logits(self.model.ctx, -1)
        return torch.tensor(found[:self.model.n_vocab()])

    def decode(self, token: int) -> None:
        self.model.eval([token])


class OnnxRuntime(Stepped):
    """ONNX Runtime GenAI, on what its own builder makes."""

    package, weights = "onnxruntime-genai", "int4"

    @property
    def name(self) -> str:
        return "ONNX Runtime GenAI"

    def open(self) -> None:
        import onnxruntime_genai

        self.api = onnxruntime_genai
        config = onnxruntime_genai.Config(str(self._made()))
        config.overlay('{"model": {"decoder": {"session_options": {"intra_op_num_threads": '
                       f"{self.given.threads}}}}}}}}}")
        self.model = onnxruntime_genai.Model(config)

    def _made(self) -> Path:
        source: Path = self.given.files.folder()
        target = source.parent / "onnx_int4"
        if not (target / "genai_config.json").is_file():
            subprocess.run([sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", source,
                            "-o", target, "-p", "int4", "-e", "cpu"], check=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return target

    def prefill(self, ids: list[int]) -> torch.Tensor:
        options = self.api.GeneratorParams(self.model)
        options.set_search_options(max_length=self.given.capacity, do_sample=False)
        self.generator = self.api.Generator(self.model, options)
        self.generator.append_tokens(ids)
        return torch.from_numpy(self.generator.get_logits()).float().flatten()

    def decode(self, token: int) -> None:
        self.generator.append_tokens([token])
        self.generator.get_logits()


class OpenVino(Side):
    """OpenVINO GenAI, on the GGUF file of llama.cpp. It has no step of its own: its own figures of
    a greedy run are taken."""

    package = "openvino-genai"

    def __init__(self, given: Given, weights: str) -> None:
        super().__init__(given)
        self.weights = weights

    @property
    def name(self) -> str:
        return "OpenVINO GenAI"

    def open(self) -> None:
        import openvino
        import openvino_genai

        self.tensor, self.api = openvino.Tensor, openvino_genai
        self.model = openvino_genai.LLMPipeline(
            str(self.given.files.gguf(self.weights)), "CPU",
            INFERENCE_NUM_THREADS=self.given.threads)

    def prefill(self, ids: list[int]) -> None:
        self._generate(ids, 1)

    def run(self, ids: list[int], steps: int) -> tuple[float, float]:
        figures = self._generate(ids, steps + 1).perf_metrics
        return figures.get_ttft().mean / 1e3, figures.get_tpot().mean / 1e3

    def _generate(self, ids: list[int], count: int) -> Any:
        given = torch.tensor([ids]).numpy()
        inputs = self.api.TokenizedInputs(self.tensor(given), self.tensor(given * 0 + 1))
        return self.model.generate(inputs, max_new_tokens=count, ignore_eos=True,
                                   do_sample=False)


PEERS: dict[str, tuple[str, str]] = {
    "transformers eager": ("transformers", "pip install 'graphdsl[hf]'"),
    "torch.compile": ("torch", "pip install torch"),
    "llama.cpp": ("llama_cpp", "CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python"),
    "ONNX Runtime GenAI": ("onnxruntime_genai", "pip install onnxruntime-genai onnx onnx-ir"),
    "OpenVINO GenAI": ("openvino_genai", "pip install openvino-genai"),
}
"""The module that a peer needs, and how to install it."""


def is_there(peer: str) -> bool:
    return importlib.util.find_spec(PEERS[peer][0]) is not None


def sides(given: Given, ours: list[str], peers: list[str], llama: list[str],
          openvino: list[str]) -> list[Side]:
    """Ours, and those of `peers` that are installed."""
    made: dict[str, list[Side]] = {
        "transformers eager": [Transformers(given)],
        "torch.compile": [Compiled(given)],
        "llama.cpp": [LlamaCpp(given, weights) for weights in llama],
        "ONNX Runtime GenAI": [OnnxRuntime(given)],
        "OpenVINO GenAI": [OpenVino(given, weights) for weights in openvino]}
    own: list[Side] = [Ours(given, weights) for weights in ours]
    return own + [side for peer in peers if is_there(peer) for side in made[peer]]
