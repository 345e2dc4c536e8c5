"""The model of Triton's python backend, with a stand-in for Triton's module."""

import json
import sys
import types

import numpy as np
import pytest

from rewriter import load
from rewriter.errors import MissingDependencyError
from rewriter.export.triton import export_triton, serving
from rewriter.export.triton.serving import TritonPythonModel


class Tensor:
    def __init__(self, name, array):
        self._name, self._array = name, array

    def name(self):
        return self._name

    def as_numpy(self):
        return self._array

    @classmethod
    def from_dlpack(cls, name, tensor):
        return cls(name, tensor.as_numpy())


class TritonError:
    INVALID_ARG, INTERNAL = "invalid", "internal"

    def __init__(self, message, code):
        self.message, self.code = message, code


class Response:
    def __init__(self, output_tensors, error=None):
        self.outputs = {t.name(): t.as_numpy() for t in output_tensors}
        self.error = error


class Request:
    def __init__(self, wanted=("out",), **arrays):
        self._tensors = [Tensor(name, array) for name, array in arrays.items()]
        self._wanted = list(wanted)

    def inputs(self):
        return self._tensors

    def requested_output_names(self):
        return self._wanted


@pytest.fixture
def utils(monkeypatch):
    """A stand-in for Triton's module."""
    module = types.SimpleNamespace(Tensor=Tensor, TritonError=TritonError, InferenceResponse=Response)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    return module


@pytest.fixture
def start(dense, tmp_path, utils):
    """Starts a model of Triton with these parameters and instance groups; it is finished after the test."""
    started = []

    def initialize(parameters, groups=()):
        done = export_triton(dense, tmp_path / "repo")
        given = {key: {"string_value": value} for key, value in parameters.items()}
        config = {"max_batch_size": 8, "parameters": given, "instance_group": list(groups)}
        args = {
            "model_config": json.dumps(config),
            "model_repository": str(done.repository / done.name),
            "model_version": str(done.version),
            "model_instance_kind": "CPU",
            "model_instance_device_id": "0",
        }
        started.append(TritonPythonModel())
        started[-1].initialize(args)
        return started[-1]

    yield initialize
    for model in started:
        model.finalize()


def test_requests_get_what_a_call_gives(start, dense):
    model = start({"warmup": "true"})
    one = np.arange(4, dtype=np.float32)[None]
    wrong = one.astype(np.float64)
    found = model.execute([Request(image=one), Request(image=wrong), Request(image=one * 2), Request((), image=one)])
    with load(dense, provider="cpu") as function:
        both = function(np.concatenate([one, one * 2, one]))["out"]
    np.testing.assert_array_equal(found[0].outputs["out"], both[:1])
    np.testing.assert_array_equal(found[2].outputs["out"], both[1:2])
    assert found[3].outputs == {}
    assert found[1].error.code == "invalid"
    assert "float64" in found[1].error.message


def test_arrays_are_handed_over_as_triton_reads_them(start, monkeypatch):
    """It reads memory from the first element on, and knows no tensors without dimensions."""
    model = start({})
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    monkeypatch.setattr(model._function, "run", lambda inputs: {"turned": turned, "scalar": np.array(7)})
    (found,) = model.execute([Request(("turned", "scalar"), image=np.zeros((1, 4), np.float32))])
    assert found.outputs["turned"].flags.c_contiguous
    np.testing.assert_array_equal(found.outputs["turned"], turned)
    assert found.outputs["scalar"].tolist() == [7]


@pytest.mark.parametrize(
    ("parameters", "groups", "threads"),
    [
        ({}, [{"kind": "KIND_CPU", "count": 1}], None),
        ({}, [{"kind": "KIND_CPU", "count": 2}], 4),
        ({}, [{"kind": "KIND_CPU", "count": 20}], 1),
        ({"threads": "3"}, [{"kind": "KIND_CPU", "count": 2}], 3),
    ],
)
def test_instances_on_the_cpu_share_its_cores(start, monkeypatch, parameters, groups, threads):
    given = {}
    monkeypatch.setattr(serving.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(serving, "load", lambda *paths, **options: given.update(options) or load(*paths, **options))
    start(parameters, groups)
    assert given["threads"] == threads


def test_outside_of_triton_it_says_so():
    with pytest.raises(MissingDependencyError, match="inside of Triton's python backend only"):
        TritonPythonModel().initialize({})


def test_a_server_that_misreads_arrays_is_refused(utils):
    class Misread(Tensor):
        def as_numpy(self):
            return np.broadcast_to(self._array.ravel()[0], self._array.shape)

    utils.Tensor = Misread
    with pytest.raises(MissingDependencyError, match=r"cannot read arrays of numpy .*: pip install 'numpy<2'"):
        TritonPythonModel().initialize({})
