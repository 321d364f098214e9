"""A DSL file: loaded by its path, and the one Layer, Model or build() that it defines."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any

from graphdsl.errors import GraphError, Loc
from graphdsl.ir import FLOATS, Graph, Value
from graphdsl.layer import Layer, Model, class_loc, trace
from graphdsl.settings import configured, read_setting

BUILD_HINT = "define build(), or exactly one Layer or Model class with a default config"


@dataclass(frozen=True)
class Source:
    """What a DSL file defines. `layer` is None where the file has a build() of its own, and then
    `config` holds its arguments as attributes."""

    path: Path
    module: ModuleType
    layer: Layer | None
    graph: Graph
    config: Any

    @property
    def name(self) -> str:
        return self.graph.name

    @property
    def dtype(self) -> str:
        """The dtype that the graph was traced for."""
        return dtype_of(self.graph)

    def importing(self) -> AbstractContextManager[None]:
        """While this is open, code of the file can import its neighbours and be compiled."""
        return _importing(self.module, self.path)

    def peer(self) -> Any:
        """The torch.nn.Module that the file offers for comparison: peer(config).

        Raises GraphError when the file has none, or it fails.
        """
        make = getattr(self.module, "peer", None)
        if not callable(make):
            raise GraphError(f"{self.path.name} defines no peer(config), so there is nothing to "
                             "compare with", Loc(str(self.path), 1),
                             "def peer(config): return a torch.nn.Module for the same maths")
        with _blaming(self.path, "peer(config)"):
            return make(self.config)


def dtype_of(graph: Graph) -> str:
    """The floating dtype of a graph's first input, or else param, that has one."""
    leaves = graph.inputs + graph.state + graph.params
    return next((v.dtype for v in leaves if v.dtype in FLOATS), "f32")


def load_source(path: Path, settings: Mapping[str, str] | None = None,
                dtype: str | None = None, *, default: str = "f32") -> Source:
    """Runs the DSL file at `path` and traces what it defines for `dtype`, or where none is given
    for `default`, unless a build() of the file has its own.

    `settings` are fields of the config as text, or arguments of build(). sys.path and sys.modules
    are left as they were, but for libraries that the file imported. Raises GraphError, at the
    user's line, for a file that cannot be read or run, or that defines not exactly one thing.
    """
    path = Path(path)
    module, code, lines = _read(path)
    file = Path(code.co_filename)
    with _importing(module, file):
        with _blaming(file, "the file"):
            exec(code, vars(module))
        make = vars(module).get("build")
        if inspect.isfunction(make) and make.__module__ == module.__name__:
            config, graph = _call_build(make, file, settings or {}, dtype, default)
            return Source(file, module, None, graph, config)
        kind, loc = _one_class(module, file, lines)
        layer = _instance(kind, loc, file, settings or {})
        with _blaming(file, f"{kind.__name__}"):
            graph = trace(layer, dtype or default)
        return Source(file, module, layer, graph, layer.config)


def _read(path: Path) -> tuple[ModuleType, CodeType, dict[str, int]]:
    """An empty module for the file, its code, and the line of every class in it."""
    if path.is_dir():
        raise GraphError(f"{path}: a folder; wanted: a Python file that defines a layer")
    if not path.exists():
        raise GraphError(f"{path}: no such file")
    try:
        text = path.read_bytes()
    except OSError as error:
        raise GraphError(f"{path}: cannot be read: {error.strerror}") from error
    file = str(path.resolve())
    # The file is compiled here and not by an import, so that neither a stale __pycache__ is read
    # nor a new one left beside the user's file.
    try:
        tree = ast.parse(text, file)
        code = compile(tree, file, "exec", dont_inherit=True)
    except SyntaxError as error:
        loc = Loc(file, error.lineno) if error.lineno else None
        raise GraphError(f"not Python: {error.msg}", loc or Loc(file, 1),
                         (error.text or "").strip()) from error
    except ValueError as error:
        raise GraphError(f"not Python: {error}", Loc(file, 1)) from error
    # No library has this name, so the file never stands in for one: torch.py stays harmless.
    module = ModuleType("graphdsl_file_" + re.sub(r"\W", "_", path.stem))
    module.__file__ = file
    lines = {node.name: node.lineno for node in tree.body if isinstance(node, ast.ClassDef)}
    return module, code, lines


@contextmanager
def _importing(module: ModuleType, file: Path) -> Iterator[None]:
    """sys.path and sys.modules as for a script at `file`; what the file's folder gave is taken out
    again, and kept on the module so that the next time finds the same neighbours."""
    kept: dict[str, ModuleType] = vars(module).setdefault("__graphdsl_neighbours__", {})
    folder, before = str(file.parent), set(sys.modules)
    path, quiet = list(sys.path), sys.dont_write_bytecode
    shadowed = {name: sys.modules[name] for name in kept if name in sys.modules}
    is_new = folder not in path
    sys.modules.update({**kept, module.__name__: module})
    if is_new:
        sys.path.insert(0, folder)
        sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.path[:], sys.dont_write_bytecode = path, quiet
        if is_new:
            kept.update(_neighbours(file.parent, before))
        for name in [*kept, module.__name__]:
            sys.modules.pop(name, None)
        sys.modules.update(shadowed)


def _neighbours(folder: Path, before: set[str]) -> dict[str, ModuleType]:
    """The modules that were imported from `folder` since `before`, and their submodules."""
    new = {name: m for name, m in sys.modules.items() if name not in before}
    tops = {name for name, m in new.items()
            if "." not in name and _home(m) == folder}
    return {name: m for name, m in new.items() if name.partition(".")[0] in tops}


def _home(module: ModuleType) -> Path | None:
    """The folder that a top-level module or package was found in."""
    spec = getattr(module, "__spec__", None)
    places = list(spec.submodule_search_locations or []) if spec else []
    where = places[0] if places else getattr(module, "__file__", None)
    return Path(where).parent if where else None


@contextmanager
def _blaming(file: Path, what: str) -> Iterator[None]:
    """Whatever the user's code raises becomes a GraphError at the user's line: their code may
    raise anything, so nothing narrower can be caught here."""
    try:
        yield
    except GraphError:
        raise
    except (Exception, SystemExit) as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__)
                  if Path(f.filename).parent == file.parent]
        if isinstance(error, AssertionError) and _is_ours(error):
            raise
        loc = Loc(frames[-1].filename, frames[-1].lineno or 1) if frames else Loc(str(file), 1)
        message = str(error) or "no message"
        hint = "--debug shows where"
        if isinstance(error, AttributeError) and isinstance(error.obj, Value):
            hint = "a Value has a shape, a dtype and operators; ops are functions of graphdsl.ops"
        raise GraphError(f"{what} raised {type(error).__name__}: {message}", loc, hint) from error


def _is_ours(error: BaseException) -> bool:
    """Whether an invariant of this package broke, which is no fault of the user's."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(last.filename).is_relative_to(Path(__file__).parent)


def _one_class(module: ModuleType, file: Path,
               lines: Mapping[str, int]) -> tuple[type[Layer], Loc]:
    """The Model of the file, or else its one Layer."""
    own = [kind for kind in vars(module).values()
           if isinstance(kind, type) and issubclass(kind, Layer)
           and kind.__module__ == module.__name__]
    own = list(dict.fromkeys(own))
    models = [kind for kind in own if issubclass(kind, Model)]
    found = models or own
    if not found:
        raise GraphError("the file defines no layer", Loc(str(file), 1), BUILD_HINT)
    if len(found) > 1:
        kinds = "Models" if models else "Layers"
        listed = ", ".join(f"{k.__name__} (line {lines.get(k.__name__, '?')})" for k in found)
        raise GraphError(f"the file defines {len(found)} {kinds}: {listed}",
                         Loc(str(file), lines.get(found[1].__name__, 1)), BUILD_HINT)
    kind = found[0]
    loc = Loc(str(file), lines[kind.__name__]) if kind.__name__ in lines else class_loc(kind)
    return kind, loc or Loc(str(file), 1)


def _instance(kind: type[Layer], loc: Loc, file: Path, settings: Mapping[str, str]) -> Layer:
    """The layer made of its default config with the settings applied."""
    parameters = inspect.signature(kind).parameters
    needed = [p.name for p in parameters.values()
              if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if needed:
        raise GraphError(f"{kind.__name__} cannot be made without {', '.join(needed)}", loc,
                         "give it a default: def __init__(self, config=Config())")
    with _blaming(file, f"{kind.__name__}()"):
        layer = kind()
    if not settings:
        return layer
    default = parameters["config"].default if "config" in parameters else None
    # `config=None` stands for a config that __init__ makes itself.
    config = configured(layer.config if default is None else default, settings)
    with _blaming(file, f"{kind.__name__}(config)"):
        return kind(config)  # type: ignore[call-arg]


def _call_build(make: Callable[..., Any], file: Path, settings: Mapping[str, str],
                dtype: str | None, default: str) -> tuple[Any, Graph]:
    """The arguments that build() was called with, and the graph that it returned."""
    loc = Loc(make.__code__.co_filename, make.__code__.co_firstlineno)
    parameters = inspect.signature(make, eval_str=True).parameters
    arguments: dict[str, Any] = {}
    for name, text in settings.items():
        if name not in parameters:
            raise GraphError(f"--set {name}={text}: build() has no parameter {name}", loc,
                             f"parameters: {', '.join(parameters) or 'none'}")
        arguments[name] = _argument(parameters[name], text)
    if dtype and "dtype" in parameters:
        arguments.setdefault("dtype", dtype)
    defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
    missing = [n for n in parameters if n not in defaults and n not in arguments]
    if missing:
        raise GraphError(f"build() needs {missing[0]}", loc, f"--set {missing[0]}=VALUE")
    with _blaming(file, "build()"):
        result = make(**arguments)
        graph = trace(result, dtype or default) if isinstance(result, Layer) else result
    if not isinstance(graph, Graph):
        raise GraphError(f"build() returns {type(graph).__name__}", loc,
                         "return graphdsl.trace(layer)")
    if dtype and dtype_of(graph) != dtype:
        raise GraphError(f"build() returns a graph of {dtype_of(graph)}, wanted {dtype}", loc,
                         "take a parameter `dtype` and hand it to graphdsl.trace(layer, dtype)")
    return SimpleNamespace(**defaults | arguments), graph


def _argument(parameter: inspect.Parameter, text: str) -> Any:
    """`text` as the type of the parameter's default, or else of its annotation."""
    known = {int: 0, float: 0.0, bool: False, str: ""}
    if parameter.default is not parameter.empty and parameter.default is not None:
        return read_setting(parameter.name, text, parameter.default)
    return read_setting(parameter.name, text, known.get(parameter.annotation, ""))
