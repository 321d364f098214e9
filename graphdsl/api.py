"""What Python code calls to build and load. Like the CLI, it reads the environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphdsl.backend import find_backend
from graphdsl.builder import BuildOptions, build_graph, check_options
from graphdsl.cli import cache_folder
from graphdsl.errors import GraphError
from graphdsl.ir import Graph
from graphdsl.layer import Layer, trace
from graphdsl.passes.quantise import quantised
from graphdsl.quant import asked
from graphdsl.source import dtype_of

if TYPE_CHECKING:
    from graphdsl.borders.atb import AtbLayer
    from graphdsl.hf.model import LanguageModel
    from graphdsl.hf.replace import Replaced
    from graphdsl.runtime.group import Group
    from graphdsl.runtime.operator import Operator


Passes = Mapping[str, Mapping[str, str | int]]
"""Options of passes, by pass: {"kv_layout": {"policy": "paged", "block": 16}}."""


def build(layer_or_graph: Layer | Graph | Callable[..., Any], backend: str = "cpu",
          dtype: str | None = None, out: str | Path | None = None,
          passes: Passes | None = None, soc: str = "", quantize: str | None = None,
          act: str | None = None, tensor_parallel: Any = None) -> Operator:
    """The operator of a Layer, a Model or a traced Graph.

    `dtype` (unless given "f32", on ascend "f16") is that of the weights and activations whose
    signature names none; a Graph has its own. `out` is a folder for sources, library and manifest,
    `passes` has the options that `--pass` has, `soc` is the chip ("910b", "310p") of a backend that
    has several. `quantize` ("int8", "int4:128") is how weights of linears and embeddings are
    stored, `act` ("int8") what activations are rounded to for them. `tensor_parallel` is a process
    group of torch.distributed: this process builds and runs its rank's part. Raises GraphError for
    what the layer or an option does wrong, ToolError when the compiler fails.
    """
    from graphdsl.runtime.operator import Operator

    graph = trace(layer_or_graph, dtype or find_backend(backend, soc).target.layer_dtype)
    if isinstance(layer_or_graph, Graph) and dtype and dtype_of(graph) != dtype:
        raise GraphError(f"{graph.name} was traced for {dtype_of(graph)}, so it cannot be built "
                         f"for {dtype}", hint=f'graphdsl.trace(layer, "{dtype}")')
    group = _group(tensor_parallel)
    options = _options(backend, dtype or dtype_of(graph), Path(out) if out else None,
                       sharded(passes, group), soc)
    quant = asked(quantize, act, options.dtype)
    if quant is not None:
        graph = quantised(graph, lambda name, kind: quant)
    return Operator(build_graph(graph, options).path, group)


def load(path: str | Path, tensor_parallel: Any = None) -> Operator:
    """The operator that was built into this folder, without its weights. `tensor_parallel` is the
    process group of one that was built for a rank.

    Raises GraphError when the folder holds none, it is damaged, this machine lacks what it was
    built for, or it is for another rank.
    """
    from graphdsl.runtime.operator import Operator

    return Operator(Path(path), _group(tensor_parallel))


def _group(process_group: Any) -> Group | None:
    """This process's rank in a group of torch.distributed; a Group is one already."""
    from graphdsl.runtime.group import Group

    if process_group is None or isinstance(process_group, Group):
        return process_group
    return Group(process_group)


def register_torch_class(operator: Operator | AtbLayer, name: str | None = None) -> str:
    """Makes `torch.classes.graphdsl.Operation(name).execute([inputs..., state...])` run an
    operator with its bound weights; gives the name, that of the layer unless given.

    An AtbLayer takes the tensors of ATB's torch example there, and is registered as
    `torch.classes.OperationTorch.OperationTorch(name)` too, with a warning where other software has
    that class. Raises GraphError when no weights are bound and for anything else, ToolError when
    the C++ behind the class, which is compiled once for every version of torch, does not compile.
    """
    from graphdsl.borders.atb import AtbLayer
    from graphdsl.runtime.operator import Operator
    from graphdsl.runtime.torch_class import register

    if not isinstance(operator, Operator | AtbLayer):
        raise GraphError(f"register_torch_class: {type(operator).__name__} is neither an Operator "
                         "nor an AtbLayer", hint="graphdsl.build(layer).bind(weights), or "
                         "graphdsl.borders.atb.AtbLayer(layer, options)")
    return register(operator, name, cache=cache_folder(os.environ), environment=os.environ)


def load_model(path: str | Path, backend: str = "cpu", dtype: str | None = None,
               quantize: str | None = None, passes: Passes | None = None,
               soc: str = "", act: str | None = None,
               tensor_parallel: Any = None) -> LanguageModel:
    """A Hugging Face folder, a GGUF file or a packaged model ("smollm2"), built as one operator.

    `dtype` (unless given "bf16", on ascend "f16") is that of the weights and activations; `passes`,
    `soc` and `act` are as for `build`; `quantize` too, and may be "file" (what the file has
    quantised stays so: the default where the backend has quantised weights) or "none".
    `tensor_parallel` is as for `build`. Raises GraphError for what is not a model or an option,
    ToolError when fetching or compiling fails.
    """
    from graphdsl.hf.model import open_model

    chosen = dtype or find_backend(backend, soc).target.model_dtype
    group = _group(tensor_parallel)
    options = _options(backend, chosen, None, sharded(passes, group), soc)
    check_options(options)
    return open_model(path, options, quantize=quantize, act=act, group=group)


def replace_layers(model: Any, backend: str = "cpu", reserve: int = 1024) -> Replaced:
    """Swaps the decoder layers of a model of transformers for built operators, so that its own
    `generate` gives the same tokens; the model itself is changed, and its dtype is built for.

    Weights are packed into copies, and the original layers are let go. Of a cache that grows the
    operators hold buffers with up to `reserve` tokens to spare. Raises GraphError, with the model
    as it was, for families, weights, devices and modes that are not supported, ToolError when the
    compiler fails. A forward raises GraphError for caches, masks and outputs that built layers do
    not take or give, and where something requires grad.
    """
    from graphdsl.hf.replace import replace_layers as replace

    return replace(model, _options(backend, "f32", None), reserve)


def sharded(passes: Passes | None, group: Group | None) -> Passes:
    """The options of passes with those of `shard` for a rank."""
    own = {} if group is None else {"shard": {"rank": group.rank, "ranks": group.ranks}}
    return {**(passes or {}), **own}


def _options(backend: str, dtype: str, out: Path | None,
             passes: Passes | None = None, soc: str = "") -> BuildOptions:
    texts = {name: {key: str(value) for key, value in options.items()}
             for name, options in (passes or {}).items()}
    return BuildOptions(cache=cache_folder(os.environ), backend=backend, soc=soc, dtype=dtype,
                        out=out, passes=texts, environment=dict(os.environ))
