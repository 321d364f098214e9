"""ATB graphs as data: what the lowering makes, the checks read and the templates render.

Names are those of ATB: an operation `Linear` has a `LinearParam`. Tensors of a graph are named; the
ids that ATB wants are their places in `Graph.tensors`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from graphdsl.errors import Loc
from graphdsl.expr import Poly
from graphdsl.ir import Dim, Size

ROWS = Dim("rows")
"""The tokens of all sequences, one after another: axis 0 of what flows through a layer."""
SEQUENCES = Dim("sequences")
QUERIES = Dim("queries")
"""The sequences that PagedAttention sees: one a row, where a call has more than one token each."""
PAGES, BLOCKS, SLOTS = Dim("pages"), Dim("blocks"), Dim("slots")
TOKENS = Dim("tokens")
"""The new tokens of every sequence, of which a contiguous call has the same number each."""
PICKED = Dim("picked")
"""The rows that are taken out before the head."""


@dataclass(frozen=True)
class Enum:
    """An enumerator of an operation's param, or of namespace atb::infer where `free`."""

    name: str
    free: bool = False


@dataclass(frozen=True)
class DataType:
    """An aclDataType: ACL_FLOAT16 and its like, written by our dtype, or "undefined"."""

    dtype: str


Field = bool | int | float | Enum | DataType | tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """One tensor of a graph: its name there, dtype ("f16", "bf16", "f32", "i32"), sizes and format
    ("nd" or "nz"). `host` says that ATB reads its values on the host when it sets up."""

    name: str
    dtype: str
    shape: tuple[Size, ...]
    format: str = "nd"
    host: bool = False


@dataclass(frozen=True)
class Node:
    """One ATB operation. `fields` are those of its param that are set, by path
    ("normParam.epsilon"). `views` has for every input the shape that it is seen in, or None; at
    most one of its sizes is no number, and that one is what is left of the elements. An operation
    that writes in place has the same tensor in inputs and outputs."""

    op: str
    fields: tuple[tuple[str, Field], ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    views: tuple[tuple[Size, ...] | None, ...]
    loc: Loc | None = None
    origin: str = ""
    """The rules and Operations it comes from, as the printer shows them."""

    def seen(self, index: int) -> tuple[Size, ...]:
        """The shape in which the operation sees an input."""
        return self.views[index] or self.inputs[index].shape


@dataclass(frozen=True)
class Graph:
    """What becomes one GraphParam."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: tuple[Node, ...]

    @property
    def internals(self) -> tuple[Tensor, ...]:
        """What nodes make and only nodes of this graph read, in order."""
        known = {*self.inputs, *self.outputs}
        made = (t for node in self.nodes for t in node.outputs)
        return tuple(dict.fromkeys(t for t in made if t not in known))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors; the id of each is its place."""
        return self.inputs + self.outputs + self.internals


@dataclass(frozen=True)
class Prepared:
    """A small tensor that the runner computes on the host before a step, from `of`, an input or the
    block table (or both). Kinds:

    - "slots": i32 [rows], where every token goes in the cache, -1 for padding
    - "lengths": i32 [sequences], the new tokens of every sequence
    - "offsets": i32 [sequences], past and new tokens (FA's tokenOffset)
    - "contexts": i32 [queries], the keys that every query of PagedAttention sees
    - "blocks": i32 [queries, pages], the block table, a row for every query
    - "layer": i32 [1], 0
    - "ids": i32 [rows], token ids or positions as numbers of rows; padding becomes 0. They are
      below `limit`, the rows of the shortest table that they are looked up in
    - "angles": the same of positions in the tables of angles, whose rows are an option
    - "picked": i32 [picked], the numbers of rows that are taken, among the rows of all sequences
    - "triangle": [128, 128] in the layer's dtype, ATB's compressed causal mask
    - "mask": [sequences, tokens, slots] in the layer's dtype, added: what every query sees

    `of` is (positions, block table) for "slots", (positions,) for "offsets", "contexts" and "mask",
    to which a bool input [sequences, 1, tokens, keys] may be added that says besides what is seen,
    (block table,) for "blocks", the input itself for "ids", "angles" and "picked". `block` is the
    number of slots that a block of the cache has.
    """

    kind: str
    tensor: Tensor
    of: tuple[str, ...] = ()
    window: int = 0
    limit: int = 0
    block: int = 0


@dataclass(frozen=True)
class Run:
    """One graph in a step. `bound` names, for every input and then every output of the graph, the
    tensor of the program that it is."""

    graph: Graph
    bound: tuple[str, ...]


@dataclass(frozen=True)
class Phase:
    """What a step runs: "prefill" (paged, every sequence from its first token on), "decode" (paged,
    whatever the lengths) or "contiguous"."""

    name: str
    runs: tuple[Run, ...]

    @property
    def graphs(self) -> tuple[Graph, ...]:
        """The different graphs, in the order in which they first run."""
        return tuple(dict.fromkeys(run.graph for run in self.runs))


@dataclass(frozen=True)
class Program:
    """What a library runs. `ports` are inputs, state, params and results by their names in the
    manifest (results are `output0`, ...), each as ATB sees it; `kept` are tensors between graphs,
    which the runner allocates. `sizes` says what the dims of tensors are in dims of the manifest,
    such as rows = batch * tokens; a dim that is not in it is the manifest's dim of that name."""

    name: str
    ports: tuple[Tensor, ...]
    prepared: tuple[Prepared, ...]
    kept: tuple[Tensor, ...]
    phases: tuple[Phase, ...]
    dtype: str = field(default="f16")
    sizes: tuple[tuple[Dim, Poly], ...] = ()
