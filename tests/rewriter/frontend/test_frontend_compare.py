"""The comparison gives no benefit of the doubt; nested structures keep their order."""

import gc
import logging
from collections import namedtuple

import numpy as np
import pytest

from passes.segments import TensorSpec
from rewriter.errors import ExportError, VerificationError
from rewriter.frontend import load_source
from rewriter.frontend.noise import collector_paused, quiet
from rewriter.frontend.onnx import from_proto
from rewriter.frontend.samples import Run
from rewriter.frontend.structure import leaves, name_outputs, rebuild, unique
from rewriter.frontend.verify import compare, verify
from rewriter.source import Signature

NAN, INF = np.nan, np.inf


@pytest.mark.parametrize(
    ("reference", "result", "fault"),
    [
        ([1.0, 2.0], [1.0, 2.0001], ""),
        ([1.0, 2.0], [1.0, 2.1], "differs by 0.1"),
        ([0.0, 0.0], [0.0, 0.0], ""),
        ([0.0, 0.0], [0.0, 1e-9], "differs"),
        ([NAN, 1.0], [NAN, 1.0], ""),
        ([NAN, 1.0], [1.0, NAN], "in other places"),
        ([INF, 1.0], [-INF, 1.0], "other NaN or infinite"),
        ([NAN, 1.0], [INF, 1.0], "other NaN or infinite"),
        ([NAN, INF], [NAN, INF], ""),
        ([1 + 1j], [1 - 1j], "differs"),
        ([], [], ""),
        ([1, 2], [1, 2], ""),
        ([1, 2], [1, 3], "1 of 2 values"),
        ([True, False], [True, True], "1 of 2 values"),
        ([b"a", b"b"], ["a", "b"], ""),
        ([b"a", b"b"], ["a", "c"], "1 different strings"),
        ([[1.0]], [1.0], r"shape [1] instead of [1, 1]"),
    ],
)
def test_compare(reference, result, fault):
    difference, told = compare(np.array(reference), np.array(result), 1e-3)
    assert (fault in told) if fault else not told
    assert (difference > 1e-3) == bool(fault)


def doubling():
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"], name="add")],
        "double",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    return from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)).model


def test_verify_names_the_output_and_the_difference():
    signature = Signature((TensorSpec("in", 1, ("n",), "x"),), (TensorSpec("out", 1, ("n",), "y"),))
    x = np.array([1.0, 3.0], np.float32)
    assert verify(doubling(), signature, [Run({"in": x}, {"out": x * 2})], 1e-4, "it").max_rel_diff == {"out": 0.0}
    with pytest.raises(VerificationError, match=r"export of it .*output 'out' differs by 0.06 .*allowed 0.0001"):
        verify(doubling(), signature, [Run({"in": x}, {"out": x * 2.02})], 1e-4, "it")
    with pytest.raises(ExportError, match="ONNX Runtime cannot run the export of it"):
        verify(doubling(), signature, [Run({"in": x.astype(np.int32)}, {"out": x})], 1e-4, "it")


@pytest.mark.tensorflow
def test_tolerance_is_obeyed(tf):
    @tf.function(input_signature=[tf.TensorSpec([1, 8, 8, 1], tf.float32)])
    def function(x):
        return tf.image.resize(x, (13, 13), method="bicubic")

    with pytest.raises(VerificationError, match="'output_0'"):
        load_source(function, islands=False)
    assert load_source(function, tolerance=0.5).verification.worst > 1e-4


@pytest.mark.tensorflow
def test_a_failing_optimizer_costs_its_own_gain_only(tf, monkeypatch, ops):
    from tf2onnx.optimizer.einsum_optimizer import EinsumOptimizer

    def fail(self, graph):
        raise RuntimeError("broken")

    monkeypatch.setattr(EinsumOptimizer, "_optimize", fail)
    function = tf.function(lambda x: x * 2.0 + 1.0, input_signature=[tf.TensorSpec([2], tf.float32)])
    assert load_source(function).verification.worst == 0.0


@pytest.mark.tensorflow
def test_the_converters_log_lines_go_to_the_debug_log(tf, caplog):
    logger = logging.getLogger("tf2onnx.test")
    propagate, handlers = logging.getLogger("tf2onnx").propagate, logging.getLogger("tf2onnx").handlers[:]
    with caplog.at_level(logging.DEBUG, logger="rewriter"), quiet():
        logger.warning("noise %d", 1)
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [(logging.DEBUG, "tf2onnx.test WARNING: noise 1")]
    assert logging.getLogger("tf2onnx").propagate is propagate
    assert logging.getLogger("tf2onnx").handlers == handlers


def test_the_garbage_collector_is_put_back():
    with collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_structures_keep_the_order_of_writing():
    point = namedtuple("point", "y x")(1, {"b": [2, None], "a": (3,)})
    assert [leaf for _, leaf in leaves(point)] == [1, 2, None, 3]
    assert rebuild(point, lambda leaf: (leaf or 0) * 10) == (10, {"b": [20, 0], "a": (30,)})
    assert name_outputs({"b": 1, "a": 2, "n": None}) == {"b": 1, "a": 2}
    assert list(name_outputs({"b": 1, "a": 2})) == ["b", "a"]
    assert name_outputs([1, 2]) == {"output_0": 1, "output_1": 2}
    assert name_outputs(7) == {"output_0": 7}
    assert name_outputs([1, {"k": 2}]) == {"output_0": 1, "output_1_k": 2}
    assert name_outputs([1, 2], ["p", "p"]) == {"p": 1, "p_1": 2}
    assert unique("a", {"a", "a_1"}) == "a_2"
