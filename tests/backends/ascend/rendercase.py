"""Programs written by hand: what the lowering of a small Llama layer comes to, and smaller ones."""

from __future__ import annotations

from dataclasses import dataclass

from graphdsl.backends.ascend.atb import (
    BLOCKS,
    PAGES,
    QUERIES,
    ROWS,
    SEQUENCES,
    DataType,
    Enum,
    Field,
    Graph,
    Node,
    Phase,
    Prepared,
    Program,
    Run,
    Tensor,
)
from graphdsl.errors import Loc
from graphdsl.expr import Poly
from graphdsl.ir import Dim, Size, TensorType, Value
from graphdsl.plan import Port

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, BLOCK, LONGEST = 64, 4, 2, 16, 96, 16, 64
WIDTH, KV_WIDTH = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
BATCH, TOKENS = Dim("batch"), Dim("tokens")
View = tuple[Size, ...] | None


@dataclass(frozen=True)
class Case:
    """A program, and its interface as a plan has it."""

    program: Program
    ports: tuple[Port, ...]
    dims: tuple[Dim, ...]


def ports_of(tensors: tuple[Tensor, ...], kinds: tuple[str, ...]) -> tuple[Port, ...]:
    """The pointer table of tensors of these kinds."""
    names = ("" if kind == "output" else t.name for t, kind in zip(tensors, kinds, strict=True))
    return tuple(Port(Value(TensorType(t.shape, t.dtype), name=name, kind=kind), kind)
                 for t, name, kind in zip(tensors, names, kinds, strict=True))


def node(op: str, line: int, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...],
         fields: dict[str, Field] | None = None, views: dict[int, View] | None = None,
         origin: str = "") -> Node:
    """A node of llama_layer.py; views by input."""
    seen = tuple((views or {}).get(i) for i in range(len(inputs)))
    return Node(op, tuple((fields or {}).items()), inputs, outputs, seen,
                Loc("llama_layer.py", line), origin)


def linear_add(dtype: str = "f16") -> Case:
    """y = x w^T + z."""
    def flowing(name: str) -> Tensor:
        return Tensor(name, dtype, (ROWS, 32))

    x, z, y, product = (flowing(name) for name in ("x", "z", "y", "product"))
    w = Tensor("w", dtype, (32, 32))
    graph = Graph("Small_prefill", (x, z, w), (y,), (
        node("Linear", 7, (x, w), (product,), {"transposeB": True, "hasBias": False}),
        node("Elewise", 8, (product, z), (y,), {"elewiseType": Enum("ELEWISE_ADD")})))
    ports = (x, z, w, Tensor("output0", dtype, (ROWS, 32)))
    program = Program("Small", ports, (), (), (Phase("prefill", (
        Run(graph, ("x", "z", "w", "output0")),)),), dtype,
        ((ROWS, Poly.of(BATCH) * TOKENS), (SEQUENCES, Poly.of(BATCH))))
    return Case(program, ports_of(ports, ("input", "input", "param", "output")), (BATCH, TOKENS))


def weights(dtype: str) -> tuple[Tensor, ...]:
    """The params of the layer, as ATB reads them."""
    sizes: dict[str, tuple[int, ...]] = {
        "attn_norm": (HIDDEN,), "wqkv": (WIDTH + 2 * KV_WIDTH, HIDDEN), "wo": (HIDDEN, WIDTH),
        "ffn_norm": (HIDDEN,), "w_gate_up": (2 * FFN, HIDDEN), "w_down": (HIDDEN, FFN),
        "angles.cos": (LONGEST, HEAD_DIM), "angles.sin": (LONGEST, HEAD_DIM)}
    return tuple(Tensor(name, "f32" if name.startswith("angles") and dtype == "f16" else dtype,
                        shape) for name, shape in sizes.items())


@dataclass(frozen=True)
class Llama:
    """A paged Llama layer."""

    dtype: str = "f16"

    def flowing(self, name: str, width: int) -> Tensor:
        return Tensor(name, self.dtype, (ROWS, width))

    def angle(self, name: str) -> Tensor:
        return Tensor(name, "f32" if self.dtype == "f16" else self.dtype, (ROWS, HEAD_DIM))

    def cache(self, name: str) -> Tensor:
        return Tensor(name, self.dtype, (BLOCKS, BLOCK, KV_HEADS, HEAD_DIM))

    def prepared(self) -> dict[str, Prepared]:
        """By the names of their tensors."""
        given = ("positions", "block_table")
        made = (
            Prepared("angles", Tensor("rows_of_angles", "i32", (ROWS,)), given[:1], limit=LONGEST),
            Prepared("slots", Tensor("slots", "i32", (ROWS,)), given, block=BLOCK),
            Prepared("lengths", Tensor("lengths", "i32", (SEQUENCES,), host=True)),
            Prepared("triangle", Tensor("triangle", self.dtype, (128, 128))),
            Prepared("blocks", Tensor("blocks", "i32", (QUERIES, PAGES)), given[1:]),
            Prepared("contexts", Tensor("contexts", "i32", (QUERIES,), host=True), given[:1]))
        return {p.tensor.name: p for p in made}

    def begin(self) -> Graph:
        """The rows of the tables of angles."""
        rows, tables = self.prepared()["rows_of_angles"].tensor, weights(self.dtype)[-2:]
        cos, sin = self.angle("cos"), self.angle("sin")
        return Graph("LlamaLayer_begin", (rows, *tables), (cos, sin), tuple(
            node("Gather", 52, (table, rows), (out,), {"axis": 0, "batchDims": 0}, origin=
                 "rope_angles() <- AngleTable")
            for table, out in zip(tables, (cos, sin), strict=True)))

    def layer(self, phase: str) -> Graph:
        """The layer in a phase."""
        f, host = self.flowing, {k: p.tensor for k, p in self.prepared().items()}
        more = ("triangle",) if phase == "prefill" else ("blocks", "contexts")
        attn_norm, wqkv, wo, ffn_norm, w_gate_up, w_down = weights(self.dtype)[:-2]
        x, y, cos, sin = f("x", HIDDEN), f("y", HIDDEN), self.angle("cos"), self.angle("sin")
        normed, qkv = f("normed", HIDDEN), f("qkv", WIDTH + 2 * KV_WIDTH)
        q, k, v = f("q", WIDTH), f("k", KV_WIDTH), f("v", KV_WIDTH)
        q_rope, k_rope = f("q_rope", WIDTH), f("k_rope", KV_WIDTH)
        attended = f("attended", WIDTH) if phase == "prefill" else Tensor(
            "attended", self.dtype, (ROWS, HEADS, HEAD_DIM))
        projected, normed2, residual = f("projected", HIDDEN), f("normed2", HIDDEN), f(
            "residual", HIDDEN)
        gate_up, active, down = f("gate_up", 2 * FFN), f("active", FFN), f("down", HIDDEN)
        kc, vc = self.cache("kv.k"), self.cache("kv.v")
        heads: View = (ROWS, KV_HEADS, HEAD_DIM)
        plain: dict[str, Field] = {"transposeB": True, "hasBias": False}
        norm = Enum("RMS_NORM_NORM"), Enum("RMS_NORM_PRENORM")
        nodes = (
            node("RmsNorm", 54, (x, attn_norm), (normed,),
                 {"layerType": norm[0], "normParam.epsilon": 1e-5}),
            node("Linear", 55, (normed, wqkv), (qkv,), plain, origin="<- MergeLinears"),
            node("Split", 55, (qkv,), (q, k, v),
                 {"splitDim": 1, "splitNum": 3, "splitSizes": (WIDTH, KV_WIDTH, KV_WIDTH)},
                 origin="<- MergeLinears"),
            node("Rope", 58, (q, k, cos, sin, host["lengths"]), (q_rope, k_rope),
                 {"rotaryCoeff": 2}, origin="<- RopeAppend"),
            node("ReshapeAndCache", 58, (k_rope, v, kc, vc, host["slots"]), (kc, vc),
                 {"kvCacheCfg": Enum("K_CACHE_V_CACHE")}, {0: heads, 1: heads}),
            self.attention(phase, (q_rope, k_rope, v, kc, vc), attended, host),
            node("Linear", 60, (attended, wo), (projected,), plain, {0: (ROWS, WIDTH)}),
            node("RmsNorm", 62, (projected, x, ffn_norm), (normed2, residual),
                 {"layerType": norm[1], "preNormParam.epsilon": 1e-5,
                  "preNormParam.hasBias": False}, origin="<- AddRMSNorm"),
            node("Linear", 63, (normed2, w_gate_up), (gate_up,), plain, origin="<- MergeLinears"),
            node("Activation", 63, (gate_up,), (active,), {
                "activationType": Enum("ACTIVATION_SWIGLU_FORWARD", free=True), "dim": -1},
                origin="<- SiluMul"),
            node("Linear", 63, (active, w_down), (down,), plain),
            node("Elewise", 63, (residual, down), (y,), {"elewiseType": Enum("ELEWISE_ADD")}))
        inputs = (x, cos, sin, host["slots"], host["lengths"], *(host[name] for name in more),
                  kc, vc, attn_norm, wqkv, wo, ffn_norm, w_gate_up, w_down)
        return Graph(f"LlamaLayer_{phase}", inputs, (y,), nodes)

    def attention(self, phase: str, given: tuple[Tensor, ...], out: Tensor,
                  host: dict[str, Tensor]) -> Node:
        """What differs between the phases."""
        q, k, v, kc, vc = given
        fields: dict[str, Field] = {"headNum": HEADS, "kvHeadNum": KV_HEADS, "qkScale": 0.25}
        if phase == "prefill":
            more: dict[str, Field] = {"calcType": Enum("PA_ENCODER"), "isTriuMask": 1,
                                      "maskType": Enum("MASK_TYPE_NORM_COMPRESS")}
            return node("SelfAttention", 59, (q, k, v, host["triangle"], host["lengths"]), (out,),
                        fields | more)
        return node("PagedAttention", 59, (q, kc, vc, host["blocks"], host["contexts"]), (out,),
                    {**fields, "maskType": Enum("UNDEFINED")}, {0: (ROWS, HEADS, HEAD_DIM)})

    def phase(self, name: str) -> Phase:
        """Two runs: the angles, then the layer."""
        begin, layer = self.begin(), self.layer(name)
        bound = [t.name for t in (*layer.inputs, *layer.outputs)]
        bound[-1] = "output0"
        return Phase(name, (Run(begin, tuple(t.name for t in (*begin.inputs, *begin.outputs))),
                            Run(layer, tuple(bound))))

    def case(self) -> Case:
        """The whole library."""
        ports = (self.flowing("x", HIDDEN), Tensor("positions", "i32", (ROWS,)),
                 self.cache("kv.k"), self.cache("kv.v"),
                 Tensor("block_table", "i32", (SEQUENCES, PAGES)), *weights(self.dtype),
                 self.flowing("output0", HIDDEN))
        rows = Poly.of(BATCH) * TOKENS
        program = Program("LlamaLayer", ports, tuple(self.prepared().values()),
                          (self.angle("cos"), self.angle("sin")),
                          (self.phase("prefill"), self.phase("decode")), self.dtype,
                          ((ROWS, rows), (SEQUENCES, Poly.of(BATCH)), (QUERIES, rows)))
        kinds = ("input", "input", "state", "state", "state", *["param"] * 8, "output")
        return Case(program, ports_of(ports, kinds), (BATCH, BLOCKS, PAGES, TOKENS))


def flowing_zoo() -> Graph:
    """Every operation with every field that the lowering may set; it computes nothing."""
    fields: dict[str, dict[str, Field]] = {
        "Linear": {"transposeA": False, "transposeB": False, "hasBias": True,
                   "outDataType": DataType("bf16"), "enAccum": False},
        "RmsNorm": {"layerType": Enum("RMS_NORM_PRENORM"), "normParam.epsilon": 1e-6,
                    "normParam.modelType": Enum("GEMMA_MODEL"), "preNormParam.epsilon": 1e-6,
                    "preNormParam.hasBias": True},
        "LayerNorm": {"layerType": Enum("LAYER_NORM_NORM"), "normParam.epsilon": 1e-6,
                      "normParam.beginNormAxis": 1, "normParam.beginParamsAxis": 0},
        "Rope": {"rotaryCoeff": 64, "cosFormat": 0},
        "SelfAttention": {"headNum": 4, "kvHeadNum": 2, "qkScale": 0.25, "isTriuMask": 1,
                          "calcType": Enum("PA_ENCODER"), "windowSize": 0,
                          "maskType": Enum("MASK_TYPE_NORM_COMPRESS"),
                          "kvcacheCfg": Enum("K_CACHE_V_CACHE")},
        "PagedAttention": {"headNum": 4, "kvHeadNum": 2, "qkScale": 0.25,
                           "maskType": Enum("UNDEFINED")},
        "ReshapeAndCache": {"kvCacheCfg": Enum("K_CACHE_V_CACHE_NZ")},
        "KvCache": {},
        "Elewise": {"elewiseType": Enum("ELEWISE_MULS"), "mulsParam.varAttr": 0.5,
                    "outTensorType": DataType("f32")},
        "Activation": {"activationType": Enum("ACTIVATION_SWISH", free=True), "scale": 1.0,
                       "dim": -1, "geluMode": Enum("TANH_MODE")},
        "Split": {"splitDim": 1, "splitNum": 2, "splitSizes": (16, 16)},
        "Concat": {"concatDim": 1},
        "Transpose": {"perm": (1, 0)},
        "Slice": {"offsets": (0, 4), "size": (-1, 8)},
        "Gather": {"axis": 0, "batchDims": 0},
        "Softmax": {"axes": (-1,)},
        "Transdata": {"transdataType": Enum("ND_TO_FRACTAL_NZ"), "outCrops": (0, 0)},
    }
    x, y = Tensor("x", "f16", (ROWS, 32)), Tensor("y", "f16", (ROWS, 32))
    return Graph("Zoo", (x,), (y,), tuple(node(op, 1, (x,), (y,), given)
                                          for op, given in fields.items()))
