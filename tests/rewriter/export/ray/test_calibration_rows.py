"""What is counted in rows, and what there is to count in models, without Ray."""

import dataclasses
import itertools
import types

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.precision.ranges import RangeTable
from rewriter import Converter
from rewriter.errors import (
    ConversionError,
    ConverterStateError,
    InputError,
    InvalidParameterError,
    MissingDependencyError,
)
from rewriter.export.ray import calibration, importing
from rewriter.export.ray.counting import RowCounter, Task, joined
from rewriter.precision.calibration import METHODS, calibrate, finished
from rewriter.precision.options import PrecisionOptions
from rewriter.precision.work import check_portable, work_for_artifact, work_for_source

ROWS = 50


@pytest.fixture(scope="module")
def work(ray_models):
    return work_for_source(ray_models.network())


@pytest.fixture(scope="module")
def features():
    random = np.random.default_rng(0)
    return (random.standard_normal((ROWS, 16)) * 1.2 ** np.arange(ROWS)[:, None]).astype(np.float32)


def task(work, batch=8, method="percentile", **reads):

    return Task(dataclasses.replace(work, method=method), reads or {"x": "f"}, batch, 1)


@settings(max_examples=15, deadline=None)
@given(cuts=st.sets(st.integers(1, 6)), order=st.randoms(use_true_random=False))
@pytest.mark.parametrize("method", METHODS)
def test_chunks_of_rows_are_what_one_machine_counts(work, features, method, cuts, order):
    batches = [{"x": features[start : start + 8]} for start in range(0, ROWS, 8)]
    expected = calibrate(work.model, work.tensors, batches, method=method)
    borders = [0, *(8 * cut for cut in sorted(cuts)), ROWS]
    parts = [(a, features[a:b]) for a, b in itertools.pairwise(borders)]
    order.shuffle(parts)
    counter = RowCounter(task(work, method=method))
    first, *others = (counter.count(start, {"f": rows, "id": np.arange(len(rows))}) for start, rows in parts)
    for other in others:
        first.merge(other)
    assert finished(first, work.percentile).to_json() == expected.to_json()
    assert expected.samples == 7


def test_rows_that_are_whole_inputs(work, features):
    column = np.empty(5, object)
    column[:] = [features[start : start + 1 + start] for start in range(5)]
    found = finished(RowCounter(task(work, batch=None)).count(0, {"f": column}), 100)
    batches = [{"x": rows} for rows in column]
    assert found == calibrate(work.model, work.tensors, batches, percentile=100)
    assert found.samples == 5


def test_messages_name_the_rows(work, features):
    counter = RowCounter(task(work))
    spoilt = features.copy()
    spoilt[17, 3] = np.nan
    with pytest.raises(ConversionError, match=r"calibration sample 12 \(rows 96 to 103\): tensor 'x' has NaN in 1 of"):
        counter.count(80, {"f": spoilt})
    with pytest.raises(InputError, match=r"^calibration sample 1 \(rows 8 to 9\): input 'x' has dtype float64"):
        counter.count(8, {"f": features[:2].astype(np.float64)})
    with pytest.raises(InputError, match=r"no column 'f' \(it has id\)"):
        counter.count(0, {"id": np.arange(3)})
    ragged = np.empty(2, object)
    ragged[:] = [features[0], features[1, :5]]
    with pytest.raises(InputError, match=r"sample 0 \(rows 0 to 1\)"):
        counter.count(0, {"f": ragged})
    with pytest.raises(ConversionError, match=r"sample 3 \(row 3\): tensor 'x' has NaN"):
        RowCounter(task(work, batch=None)).count(3, {"f": spoilt[None, 17:18]})


def test_columns_of_several_blocks():
    ragged = np.empty(2, object)
    ragged[:] = [np.zeros(2), np.zeros(3)]
    found = joined([{"a": np.zeros((2, 3)), "b": np.zeros((1, 2)), "c": 0}, {"a": np.ones((1, 3)), "b": ragged}])
    assert found["a"].tolist() == [[0] * 3, [0] * 3, [1] * 3]
    assert [row.shape for row in found["b"]] == [(2,), (2,), (3,)]
    assert set(found) == {"a", "b"}


def test_a_model_is_calibrated_for_both_formats(work, ray_models, tmp_path):
    assert work.tensors == ("x", "r", "k")
    assert work_for_artifact(ray_models.save_network_artifact(tmp_path / "a")).tensors == work.tensors
    assert work_for_source(ray_models.save_network(tmp_path / "n.onnx")).tensors == work.tensors


def test_nothing_to_calibrate(rows, whole):
    for artifact in (rows, whole):
        with pytest.raises(InvalidParameterError, match="nothing to calibrate"):
            check_portable(work_for_artifact(artifact))


class TestArguments:
    @pytest.fixture(autouse=True)
    def no_ray(self, monkeypatch):
        monkeypatch.setattr(calibration, "import_ray", lambda module="ray": types.SimpleNamespace(Dataset=type(None)))

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"actors": 0}, "actors must be"),
            ({"actors": True}, "actors must be"),
            ({"num_cpus": -1}, "num_cpus must be"),
            ({"batch_size": 0}, "batch_size must be"),
            ({"method": "max"}, "calibration method 'max'"),
            ({"percentile": 0}, "percentile must be"),
            ({"columns": {"z": "f"}}, "columns: the model has no 'z'; it has: x"),
            ({"signature": "other"}, "signature= goes with"),
            ({"dataset": [1]}, "dataset must be a ray.data.Dataset, not a list"),
        ],
    )
    def test_they_are_checked_before_any_work(self, ray_models, options, match):
        with pytest.raises(InvalidParameterError, match=match):
            calibration.calibrate(model=ray_models.network(), **{"dataset": None, **options})

    def test_no_batch_dimension(self, ray_models):
        proto = ray_models.network()
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
        with pytest.raises(InvalidParameterError, match="batch_size=2 needs a batch dimension that all inputs share"):
            calibration.calibrate(None, proto, batch_size=2)


def test_without_ray_the_extra_is_named(ray_models, monkeypatch):
    def absent(module):
        raise ModuleNotFoundError(f"No module named {module!r}")

    monkeypatch.setattr(importing.importlib, "import_module", absent)
    with pytest.raises(MissingDependencyError, match=r"pip install 'trt-rewriter\[ray\]'"):
        calibration.calibrate(None, ray_models.network())


@pytest.mark.rtx
class TestConverters:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("when", ["before", "after"])
    def test_the_ranges_of_a_converter(self, ray_models, tmp_path, features, method, when, rtx):
        model = str(ray_models.save_network(tmp_path / "network.onnx"))
        batches = [features[start : start + 8] for start in range(0, ROWS, 8)]
        options = {
            "precision_mode": "INT8",
            "precision": PrecisionOptions(calibration_method=method),
            "minimum_segment_size": 1,
            "verify": False,
            "backend": rtx,
        }
        with Converter(model=model, **options) as converter:
            if when == "after":
                converter.convert(calibration_input_fn=lambda: batches)
            work = converter.calibration_work()
            if when == "before":
                converter.convert(calibration_input_fn=lambda: batches)
            converter.calibrate()
            path = converter.save(tmp_path / "artifact")
        saved = RangeTable.from_json((path / "calibration.json").read_text())
        counter = RowCounter(Task(work, {"x": "f"}, 8, 1))
        counts = counter.count(24, {"f": features[24:]})
        counts.merge(counter.count(0, {"f": features[:24]}))
        table = finished(counts, work.percentile)
        assert table.to_json() == saved.to_json()
        with Converter(model=model, calibration=table, **options) as converter:
            converter.convert()
            converter.calibrate()
            assert converter.report.precision.calibration["samples"] == 7

    def test_inputs_that_calibrate_by_themselves(self, ray_models, tmp_path, features, rtx):
        model = str(ray_models.save_network(tmp_path / "network.onnx"))
        options = {"model": model, "precision_mode": "INT8", "minimum_segment_size": 1, "backend": rtx}
        seen = []

        class Inputs:
            def calibrate(self, work, progress=None):
                seen.append(work.tensors)
                progress(7, None)
                return finished(RowCounter(Task(work, {"x": "f"}, 8, 1)).count(0, {"f": features}), work.percentile)

        tables = []
        for inputs in (Inputs(), lambda: [features[start : start + 8] for start in range(0, ROWS, 8)]):
            with Converter(**options) as converter:
                converter.convert(calibration_input_fn={"network": inputs})
                converter.calibrate()
                path = converter.save(tmp_path / str(len(tables)))
                tables.append((path / "calibration.json").read_bytes())
        assert tables[0] == tables[1]
        assert seen == [("x", "r", "k")]

    def test_what_needs_no_ranges(self, ray_models, rtx):
        converter = Converter(model=ray_models.network(), precision_mode="FP16", backend=rtx)
        with pytest.raises(InvalidParameterError, match="precision_mode='FP16' needs no calibration"):
            converter.calibration_work()
        converter.close()
        with pytest.raises(ConverterStateError, match="calibration_work came too late"):
            converter.calibration_work()


def test_islands_are_refused(work):

    from passes.island_node import ISLAND_DOMAIN, IslandAttributes, make_island

    proto = work.model.copy_proto()
    proto.graph.node.append(make_island("TFIsland_000", ("x",), ("z",), IslandAttributes("/a", ("x",), ("z",))))
    proto.opset_import.append(onnx.helper.make_opsetid(ISLAND_DOMAIN, 1))
    model = dataclasses.replace(work.model, proto=proto)
    with pytest.raises(InvalidParameterError, match=r"keeps a piece in TensorFlow \(TFIsland_000\)"):
        check_portable(dataclasses.replace(work, model=model))
