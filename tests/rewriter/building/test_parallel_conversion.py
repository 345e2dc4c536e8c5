"""Conversions that build their engines side by side, with real TensorRT-RTX."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from rewriter.artifact import load_artifact
from rewriter.cli import main
from rewriter.converter import Converter
from rewriter.errors import InvalidParameterError
from rewriter.params import ConversionParams
from rewriter.runtime.loading import load

pytestmark = pytest.mark.rtx
BLOCKS = 4


def several_segments():
    """MatMul-Add-Relu blocks with an operator of classical machine learning between them, which TensorRT has not."""
    rng = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for i in range(BLOCKS):
        weights.append(onnx.numpy_helper.from_array(rng.standard_normal((8, 8)).astype(np.float32), f"w{i}"))
        nodes += [
            helper.make_node("MatMul", [value, f"w{i}"], [f"m{i}"], f"matmul{i}"),
            helper.make_node("Add", [f"m{i}", f"m{i}"], [f"a{i}"], f"add{i}"),
            helper.make_node("Relu", [f"a{i}"], [f"r{i}"], f"relu{i}"),
            helper.make_node("Scaler", [f"r{i}"], [f"s{i}"], f"scale{i}", "", "ai.onnx.ml", offset=[0.5], scale=[2.0]),
        ]
        value = f"s{i}"
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 8]) for n in ("x", value))
    typed = [helper.make_tensor_value_info(f"s{i}", TensorProto.FLOAT, ["batch", 8]) for i in range(BLOCKS - 1)]
    graph = helper.make_graph(nodes, "g", [x], [y], weights, value_info=typed)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def samples():
    return ({"x": np.ones((batch, 8), np.float32)} for batch in (1, 4))


@pytest.fixture
def eager(monkeypatch):
    """Children are started as if builds took long; gives how many there were whenever one was wanted."""
    from rewriter.backends import pool

    kept, counts = pool.PoolBackend._claimed, []

    def claimed(self):
        self._patience = 0.0
        child = kept(self)
        counts.append(len(self._children))
        return child

    monkeypatch.setattr(pool.PoolBackend, "_claimed", claimed)
    return counts


def test_an_artifact_is_the_same_however_many_engines_are_built_at_a_time(tmp_path, eager):
    events = []
    for jobs in (1, 3):
        with Converter(
            model=several_segments(), backend="tensorrt_rtx", targets=["sm89"], progress=events.append
        ) as converter:
            converter.convert()
            converter.build(samples, jobs=jobs)
            converter.save(tmp_path / str(jobs))
            assert max(eager) == jobs
            assert len(converter._shop._backend._children) == 1  # the others were idle, and are gone
            assert [engine.built for engine in converter.report.engines] == [True] * BLOCKS
    files = [sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*.engine")) for n in "13"]
    assert files[0] == files[1]
    assert len(files[0]) == BLOCKS
    one, other = (load_artifact(tmp_path / n).engines for n in "13")  # their bytes may differ, though seldom do
    assert [(e.op, e.key, e.targets, e.profiles) for e in one] == [(e.op, e.key, e.targets, e.profiles) for e in other]
    ends = [e.engine for e in events if e.engine is not None and e.engine.ended]
    assert [(e.finished, e.total) for e in ends] == [(n + 1, BLOCKS) for n in range(BLOCKS)] * 2
    with load(tmp_path / "3") as loaded:
        assert len(loaded.engines) == BLOCKS


def test_static_engines_are_built_side_by_side_in_convert(eager):
    params = ConversionParams(is_dynamic_op=False, max_batch_size=2)
    with Converter(
        model=several_segments(), backend="tensorrt_rtx", targets=["sm89"], conversion_params=params, progress=False
    ) as converter:
        converter.convert(jobs=2)
        assert all(engine.built for engine in converter.report.engines)
    assert max(eager) == 2


def test_one_engine_of_several_can_be_cancelled(eager):
    def progress(event):
        return event.engine is None or event.engine.name != "TRTEngineOp_001"

    with Converter(model=several_segments(), backend="tensorrt_rtx", targets=["sm89"], progress=progress) as converter:
        converter.convert()
        converter.build(samples, jobs=2)
        assert [(f.target, f.kind) for f in converter.report.failures] == [("TRTEngineOp_001", "cancelled")]
        assert [engine.built for engine in converter.report.engines] == [True, False, True, True]
        converter.build(samples, jobs=2)


def test_a_build_that_is_broken_off_keeps_no_idle_processes(eager):
    def progress(event):
        if event.engine is not None and event.engine.finished == 2:
            raise ZeroDivisionError

    with Converter(model=several_segments(), backend="tensorrt_rtx", targets=["sm89"], progress=progress) as converter:
        converter.convert()
        with pytest.raises(ZeroDivisionError):
            converter.build(samples, jobs=3)
        assert max(eager) == 3
        assert len(converter._shop._backend._children) == 1


def test_an_open_backend_with_one_process_is_told_about(rtx, caplog):
    with Converter(model=several_segments(), backend=rtx, progress=False) as converter:
        converter.convert()
        with caplog.at_level(logging.WARNING, "rewriter.workshop"):
            converter.build(samples, jobs=2)
        assert all(engine.built for engine in converter.report.engines)
        for jobs in (0, True, "2"):
            with pytest.raises(InvalidParameterError, match="jobs must be an integer of at least 1"):
                converter.build(samples, jobs=jobs)
    assert "jobs=2: the open backend builds 1 engine at a time; open_backend('tensorrt_rtx', jobs=2)" in caplog.text


def test_the_command_takes_jobs(tmp_path, capsys):
    source = tmp_path / "m.onnx"
    onnx.save(several_segments(), source)
    options = ["convert", str(source), "-o", str(tmp_path / "out"), "--targets", "sm89", "--shapes", "x:1x8,4x8"]
    assert main([*options, "--jobs", "0"]) == 2
    assert "jobs must be an integer of at least 1, not 0" in capsys.readouterr().err
    assert main([*options, "--jobs", "2"]) == 0
    assert len(list((tmp_path / "out").rglob("*.engine"))) == BLOCKS
