"""Models with mock verdicts, for tests of the page: no TensorRT, no TensorFlow."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from passes.extract import Extractor
from passes.graph_index import iter_scopes
from passes.model import from_proto
from passes.partition import PartitionOptions, propose
from passes.precision.ranges import RangeTable, TensorRange
from passes.segments import TensorSpec
from passes.splice import EngineAttributes, splice
from passes.support import SupportMap, Verdict
from rewriter.reports.page import Shown
from rewriter.reports.report import EngineReport, Failure, PassSummary, PrecisionReport, Report
from rewriter.source import Signature

FLOAT = TensorProto.FLOAT
SMALL = """<ir_version: 10, opset_import: ["" : 18]>
g (float[2] x, bool c) => (float[2] y) <float[2] a1> {
  [first_relu] a1 = Relu(x) [first_abs] b1 = Abs(a1) [sine] s1 = Sin(b1) [second_neg] n1 = Neg(s1)
  [second_exp] e1 = Exp(n1)
  [choice] y = If (c) <
    then_branch = t () => (float[2] t2) { [t1] t1 = Relu(e1) [t2] t2 = Sin(t1) },
    else_branch = e () => (float[2] e2) { [e2] e2 = Neg(s1) }
  >
}"""


def small():
    """Two engines, a native Sin and a native If with bodies."""
    return from_proto(onnx.parser.parse_model(SMALL))


def renamed(names):
    """A chain of Relu nodes with these names, each giving NAME:0; the middle one is native (Sin)."""
    nodes, value = [], "x"
    for number, name in enumerate(names):
        op = "Sin" if number == len(names) // 2 else "Relu"
        nodes.append(helper.make_node(op, [value], [f"{name}:0"], name=name))
        value = f"{name}:0"
    ends = [helper.make_tensor_value_info(name, FLOAT, ["N", 4]) for name in ("x", value)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    infos = [helper.make_tensor_value_info(f"{name}:0", FLOAT, ["N", 4]) for name in names[:-1]]
    graph.value_info.extend(infos)
    return from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))


def residual(blocks):
    """A network of residual blocks of 10 nodes; a Sin in every eighth."""
    weight = numpy_helper.from_array(np.ones((8, 8, 1, 1), np.float32), "w")
    nodes, infos, value = [], [], "image"
    for block in range(blocks):
        stem, start = f"model/stage{block // 16}/block_{block}", value

        def add(op, name, *reads, stem=stem):
            out = f"{stem}/{name}:0"
            nodes.append(helper.make_node(op, reads, [out], name=f"{stem}/{name}"))
            infos.append(helper.make_tensor_value_info(out, FLOAT, ["batch", 8, 16, 16]))
            return out

        left = add("Relu", "relu_1", add("Conv", "conv_1", start, "w"))
        left = add("Relu", "relu_2", add("Conv", "conv_2", left, "w"))
        right = add("Sigmoid", "gate", add("Conv", "conv_gate", start, "w"))
        left = add("Mul", "scale", left, right)
        left = add("Sin" if block % 8 == 7 else "Tanh", "activation", left)
        value = add("Relu", "out", add("Add", "add", left, start))
    ends = [helper.make_tensor_value_info(name, FLOAT, ["batch", 8, 16, 16]) for name in ("image", value)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight], value_info=infos[:-1])
    return from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))


def shown(model, bad=("Sin", "If"), *, name="serving_default", source="model <x>", ranges=None):
    """What a conversion with mock verdicts would show; every third engine is not built."""
    reason = 'TensorRT does not support {} & says "no" <here>'
    verdicts = SupportMap.of(
        Verdict(n.name, n.op_type, n.op_type not in bad, reason=reason.format(n.op_type))
        for _, graph in iter_scopes(model.proto)
        for n in graph.node
    )
    found = propose(model, verdicts, PartitionOptions(1))
    engines, extractor = [], Extractor(model)
    for number, segment in enumerate(found.segments):
        extracted = extractor.extract(segment)
        nodes = extracted.model.proto.graph.node
        counts = {op: sum(n.op_type == op for n in nodes) for op in dict.fromkeys(n.op_type for n in nodes)}
        why = "" if number % 3 != 2 else "unsupported: it failed"
        engines.append(
            EngineReport(
                segment.name, segment.scope, len(nodes), counts, extracted.inputs, extracted.outputs, "FP16", not why,
                why, 0 if why else 250_000, 0.0 if why else 0.4, 0 if why else 7, arithmetic={"FP16": len(nodes)},
                decisions=(("keep-range", "n", "its range is too large"),), flops=1000 * len(nodes),
            )
        )  # fmt: skip
    total = sum(len(graph.node) for _, graph in iter_scopes(model.proto))
    report = Report(
        source=source,
        engines=tuple(engines),
        native=found.native,
        coverage=found.coverage,
        built_coverage=found.coverage / 2,
        total_nodes=total,
        verification={"y": 3e-7},
        failures=(Failure("build", "TRTEngineOp_002", "unsupported", "it failed"),),
        timings={"load": 0.1, "export": 0.4, "passes": 0.05, "support": 0.6, "build": 2.5},
        passes=(
            PassSummary("canonicalize", "Canonicalize(name='canonicalize')", 0.01, total + 9, total + 2, {"inline": 7}),
            PassSummary("fold_constants", "FoldConstants(max_bytes=16)", 0.04, total + 2, total, {"fold": 2}),
        ),
        versions={"python": "3.11.7", "backend": "mock 1.0"},
        params={"precision_mode": "FP16", "minimum_segment_size": 1, "op_denylist": [], "passes": {"given": False}},
        precision=PrecisionReport("FP16", {"mode": "FP16"}, {"sine": "the guard kept it"}, ("A <note> to know",)),
        flops=2000 * total,
    )
    spliced = splice(model, found, {s.name: EngineAttributes("00", len(s.inputs)) for s in found.segments})
    graph = model.proto.graph
    specs = [
        tuple(TensorSpec(v.name, v.type.tensor_type.elem_type, ("N", 4)) for v in values)
        for values in (graph.input, graph.output)
    ]
    return Shown(spliced, report, Signature(*specs, name), ranges)


def some_ranges(model):
    """A range for every value that nodes of the main graph give."""
    names = [name for node in model.proto.graph.node for name in node.output]
    found = {name: TensorRange(-float(1 + i % 7), 10.0 ** (i % 6)) for i, name in enumerate(names)}
    return RangeTable(found, "minmax", 4)
