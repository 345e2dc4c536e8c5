"""Builds side by side, with real TensorRT-RTX."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from passes.model import from_proto
from passes.segments import Segment, SegmentModel, TensorSpec
from rewriter.backends import open_backend
from rewriter.backends.base import BuildFailure, BuildOptions, BuiltEngine, InputProfile
from rewriter.backends.pool import PoolBackend
from rewriter.building.parallel import BuildTask, run_builds
from rewriter.building.segment_builder import SegmentBuilder
from rewriter.precision.lowering import Lowered

pytestmark = pytest.mark.rtx


def chain(seed):
    rng = np.random.default_rng(seed)
    weights = [numpy_helper.from_array(rng.standard_normal((64, 64)).astype(np.float32), f"w{i}") for i in range(3)]
    nodes = [helper.make_node("MatMul", [f"v{i}", f"w{i}"], [f"v{i + 1}"], f"m{i}") for i in range(3)]
    shapes = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 64]) for n in ("v0", "v3")]
    graph = helper.make_graph(nodes, "g", shapes[:1], shapes[1:], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    x, y = (TensorSpec(n, TensorProto.FLOAT, ("n", 64)) for n in ("v0", "v3"))
    segment = Segment("TRTEngineOp_000", (), ("m0", "m1", "m2"), ("v0",), (), ("v3",), 3)
    model = from_proto(onnx.shape_inference.infer_shapes(proto))
    return Lowered(SegmentModel(segment, model, (x,), (y,), content_hash=f"chain{seed}"))


def test_engines_of_tensorrt_do_not_depend_on_jobs(tmp_path):
    """But for their bytes: TensorRT seldom gives other ones for the same engine, also when it is built alone."""
    profile = {"v0": InputProfile((1, 64), (4, 64), (8, 64))}
    bad = {"v0": InputProfile((1, 32), (4, 32), (8, 32))}
    found = {}
    for jobs in (1, 2):
        folder = tmp_path / str(jobs)
        folder.mkdir()
        with open_backend("tensorrt_rtx", ["SM89"], jobs=jobs) as backend:
            if isinstance(backend, PoolBackend):
                backend._patience = 0.0  # or the second child is not worth its start
            builder = SegmentBuilder(backend, BuildOptions(), folder)
            tasks = [BuildTask(f"E{i}", builder, chain(i % 3), (bad if i == 3 else profile,)) for i in range(5)]
            builds = run_builds(tasks, jobs)
            if jobs == 2:
                assert len(backend._children) == 2
        found[jobs] = [
            (b.key, b.profiles, b.outcome.layers if isinstance(b.outcome, BuiltEngine) else b.outcome) for b in builds
        ]
    assert found[1] == found[2]
    assert [isinstance(outcome, BuildFailure) for *_, outcome in found[1]] == [False, False, False, True, False]
