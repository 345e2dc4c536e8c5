"""Parsing and building with real TensorRT-RTX, on a machine with no GPU."""

from __future__ import annotations

import hashlib
import os
import re
import select
import subprocess
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from passes import model as model_module
from rewriter.backends import open_backend
from rewriter.backends.base import BuildFailure, BuildOptions, BuiltEngine, InputProfile
from rewriter.backends.process import Child
from rewriter.errors import BackendError, InvalidParameterError

pytestmark = pytest.mark.rtx

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
BATCH = {"x": InputProfile((1, 64), (4, 64), (8, 64))}


@pytest.fixture(scope="module")
def dense(make_model):
    """y = relu(x @ w), with a dynamic batch and a weight that is a stub."""
    weight = np.random.default_rng(0).random((64, 64), np.float32)
    return make_model(
        [helper.make_node("MatMul", ["x", "w"], ["z"], name="mm"), helper.make_node("Relu", ["z"], ["y"], name="act")],
        {"x": (FLOAT, ["batch", 64])},
        {"y": (FLOAT, ["batch", 64])},
        [numpy_helper.from_array(weight, "w")],
    )


def test_the_child_imports_nothing_heavy_and_knows_its_targets(rtx):
    rtx.version  # noqa: B018 -- starts it
    assert rtx._info["heavy"] == []
    assert rtx.flavour == "tensorrt_rtx"
    assert {"SM75", "SM80", "SM86", "SM89", "SM120"} <= set(rtx.known_targets)
    assert set(rtx.known_targets) - set(rtx.default_targets) == {"SM75"}
    assert ("SM121" in rtx.default_targets) == (tuple(map(int, rtx.version.split(".")[:2])) >= (1, 5))


def test_nothing_of_tensorrt_is_imported_here():
    code = (
        "import sys; from rewriter.backends import open_backend; b = open_backend('tensorrt_rtx'); b.version; "
        "b.close(); "
        "sys.exit(any(m.split('.')[0].startswith('tensorrt') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0


def test_unknown_targets_are_refused_when_opened():
    with pytest.raises(InvalidParameterError, match="cannot build for SM90; it knows SM75, SM80"):
        open_backend("tensorrt_rtx", ["9.0"])


def test_thousands_of_requests_are_served_by_one_child(rtx, dense, make_model):
    bad = make_model([helper.make_node("Det", ["x"], ["y"], name="det")], {"x": (FLOAT, [3, 3])}, {"y": (FLOAT, [])})
    assert rtx.parse(dense) == ()
    child = rtx._child
    for _ in range(750):
        assert rtx.parse(dense) == ()
        assert len(rtx.parse(bad)) == 1
    assert rtx._child is child


def test_errors_carry_stage_node_and_inner_name(rtx, make_model):
    nodes = [helper.make_node("Cast", ["x"], ["a0"], name="cast", to=TensorProto.INT32)]
    nodes += [helper.make_node("BitwiseNot", [f"a{i}"], [f"a{i + 1}"], name=f"not{i}") for i in range(4)]
    errors = rtx.parse(make_model(nodes, {"x": (FLOAT, [2])}, {"a4": (TensorProto.INT32, [2])}))
    assert [(e.node, e.name, e.operator, e.stage) for e in errors] == [
        (i + 1, f"not{i}", "BitwiseNot", "check") for i in range(4)
    ]
    nodes = [helper.make_node("Add", ["u", "u"], [f"y{i}"], name=f"add{i}") for i in range(4)]
    outputs = {f"y{i}": (TensorProto.UINT8, [2]) for i in range(4)}
    errors = rtx.parse(make_model(nodes, {"u": (TensorProto.UINT8, [2])}, outputs))
    assert [(e.name, e.stage, e.code) for e in errors] == [("add0", "import", "INVALID_NODE")]
    (error,) = rtx.parse(
        make_model([helper.make_node("Identity", ["s"], ["t"], name="i")], {"s": (8, [2])}, {"t": (8, [2])})
    )
    assert (error.node, error.input, error.stage) == (-1, "s", "import")


def test_weights_arrive_whatever_holds_them(rtx, dense, tmp_path):
    """Equal weights give engines of equal size, but not those of another array; so the data did reach TensorRT."""
    spooled = model_module.spool(dense, tmp_path / "w.bin")
    identical = np.zeros((64, 64), np.float32)
    digests = []
    for number, model in enumerate([dense, spooled, model_module.Model(dense.proto, {"w": identical})]):
        outcome = rtx.build(model, (BATCH,), BuildOptions(targets=("SM89",)), tmp_path / f"{number}.engine")
        data = (tmp_path / f"{number}.engine").read_bytes()
        assert isinstance(outcome, BuiltEngine)
        digests.append(dense.weights["w"].tobytes()[:256] in data)
    assert digests == [True, True, False]


def test_an_engine_does_not_tell_what_was_built_before_it(rtx, dense, tmp_path):
    """A number in it, say, would make all of them different; TensorRT by itself does so seldom."""
    found = set()
    for number in range(4):
        rtx.parse(dense)
        outcome = rtx.build(dense, (BATCH,), BuildOptions(targets=("SM89",)), tmp_path / f"{number}.engine")
        found.add(outcome.sha256)
    assert len(found) < 4


def test_an_engine_is_described_truly(rtx, dense, tmp_path):
    output = tmp_path / "e.engine"
    steps = []
    outcome = rtx.build(dense, (BATCH,), BuildOptions(), output, lambda *step: steps.append(step) or True)
    assert isinstance(outcome, BuiltEngine)
    data = output.read_bytes()
    assert (outcome.path, outcome.size) == (output, len(data))
    assert outcome.sha256 == hashlib.sha256(data).hexdigest()
    assert outcome.layers >= 2
    assert outcome.seconds > 0
    assert {done <= total for _, done, total in steps} == {True}
    assert steps[0][1] == 0
    assert list(tmp_path.iterdir()) == [output]


def test_several_profiles_and_targets(rtx, dense, tmp_path):
    other = {"x": InputProfile((16, 64), (16, 64), (32, 64))}
    outcome = rtx.build(
        dense, (BATCH, other), BuildOptions(targets=("SM80", "8.9"), optimization_level=1), tmp_path / "e"
    )
    assert isinstance(outcome, BuiltEngine)


def test_a_cancellation_that_comes_too_late_still_counts(rtx, dense, tmp_path, monkeypatch):
    send = Child.send

    def deaf(self, header, *rest):
        if header.get("command") != "cancel":
            send(self, header, *rest)

    monkeypatch.setattr(Child, "send", deaf)
    outcome = rtx.build(dense, (BATCH,), BuildOptions(), tmp_path / "e", lambda *_: False)
    assert (outcome.kind, outcome.reason) == ("cancelled", "the build was cancelled")
    assert list(tmp_path.iterdir()) == []


def test_a_cancelled_build_says_so_and_leaves_no_file(rtx, dense, tmp_path):
    count = iter(range(100))
    outcome = rtx.build(dense, (BATCH,), BuildOptions(), tmp_path / "e", lambda *_: next(count) < 3)
    assert (outcome.kind, outcome.reason) == ("cancelled", "the build was cancelled")
    assert list(tmp_path.iterdir()) == []
    assert isinstance(rtx.build(dense, (BATCH,), BuildOptions(), tmp_path / "e"), BuiltEngine)


@pytest.mark.parametrize("workspace", [0, 1, 1024])
def test_too_little_workspace_says_how_much_was_allowed(rtx, dense, tmp_path, workspace):
    profile = {"x": InputProfile((1, 64), (4096, 64), (65536, 64))}
    outcome = rtx.build(dense, (profile,), BuildOptions(workspace_bytes=workspace), tmp_path / "e")
    assert isinstance(outcome, BuildFailure)
    assert outcome.kind == "workspace"
    assert f"{workspace:,} bytes" in outcome.reason


@pytest.mark.parametrize(
    ("profiles", "words"),
    [
        ((), "'x' of shape .* is dynamic and has no range"),
        (({"x": InputProfile((8, 64), (4, 64), (1, 64))},), "MIN<=OPT<=MAX"),
        (({"x": InputProfile((1,), (1,), (1,))},), "has rank 2"),
        (({"x": InputProfile((1, 8), (1, 8), (1, 8))},), r"'x' of shape \[-1, 64\] cannot be \[\[1, 8\]"),
    ],
)
def test_bad_profiles_are_failures_of_kind_profile(rtx, dense, tmp_path, profiles, words):
    outcome = rtx.build(dense, profiles, BuildOptions(), tmp_path / "e")
    assert isinstance(outcome, BuildFailure)
    assert outcome.kind == "profile"
    assert re.search(words, outcome.reason)


@pytest.fixture(scope="module")
def reshape(make_model):
    return make_model(
        [helper.make_node("Reshape", ["x", "s"], ["z"], name="r"), helper.make_node("Relu", ["z"], ["y"], name="a")],
        {"x": (FLOAT, ["n", 4]), "s": (INT64, [2])},
        {"y": (FLOAT, ["p", "q"])},
    )


def test_shape_tensors_take_values(rtx, reshape, tmp_path):
    data = InputProfile((1, 4), (4, 4), (8, 4))
    values = InputProfile((1, 4), (4, 4), (8, 4), is_values=True)
    assert isinstance(rtx.build(reshape, ({"x": data, "s": values},), BuildOptions(), tmp_path / "e"), BuiltEngine)
    for wrong in ({"x": data}, {"x": data, "s": InputProfile((2,), (2,), (2,))}):
        outcome = rtx.build(reshape, (wrong,), BuildOptions(), tmp_path / "e")
        assert outcome.kind == "profile"
        assert "'s' holds a shape" in outcome.reason


def test_values_for_an_input_that_is_no_shape_give_its_length(rtx, make_model, tmp_path):
    model = make_model(
        [helper.make_node("Gather", ["x", "i"], ["y"], name="g")],
        {"x": (FLOAT, [10, 4]), "i": (INT64, ["k"])},
        {"y": (FLOAT, ["k", 4])},
    )
    values = InputProfile((0, 0), (3, 4), (9, 9), is_values=True)
    assert isinstance(rtx.build(model, ({"i": values},), BuildOptions(), tmp_path / "e"), BuiltEngine)


def test_one_hot_depth_depends_on_the_profile(rtx, make_model, tmp_path):
    model = make_model(
        [helper.make_node("OneHot", ["i", "d", "v"], ["y"], name="oh")],
        {"i": (INT64, ["b"]), "d": (INT64, [1])},
        {"y": (FLOAT, ["b", None])},
        [numpy_helper.from_array(np.array([0, 1], np.float32), "v")],
    )
    batch = InputProfile((1,), (2,), (4,))

    def build(low, high):
        depth = InputProfile((low,), (high,), (high,), is_values=True)
        return rtx.build(model, ({"i": batch, "d": depth},), BuildOptions(targets=("SM89",)), tmp_path / "e")

    assert isinstance(build(4, 4), BuiltEngine)
    assert (build(2, 8).kind, "Depth input" in build(2, 8).reason) == ("unsupported", True)


def test_a_model_that_does_not_parse_is_an_unsupported_build(rtx, make_model, tmp_path):
    model = make_model([helper.make_node("Det", ["x"], ["y"], name="d")], {"x": (FLOAT, [3, 3])}, {"y": (FLOAT, [])})
    outcome = rtx.build(model, (), BuildOptions(), tmp_path / "e")
    assert (outcome.kind, outcome.reason.startswith("the parser refuses it")) == ("unsupported", True)
    assert outcome.log[0].startswith("d: ")


def test_an_output_that_cannot_be_written_is_an_error(rtx, dense, tmp_path):
    with pytest.raises(BackendError, match="FileNotFoundError"):
        rtx.build(dense, (BATCH,), BuildOptions(), tmp_path / "none" / "e")


def test_a_weight_file_that_shrank_is_an_error_and_not_a_crash(rtx, dense, tmp_path):
    spooled = model_module.spool(dense, tmp_path / "w.bin")
    os.truncate(tmp_path / "w.bin", 100)
    with pytest.raises(BackendError, match="which is shorter"):
        rtx.parse(spooled)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits through a process descriptor of Linux")
def test_the_child_ends_with_its_parent():
    code = (
        "import os, sys; from rewriter.backends import open_backend; b = open_backend('tensorrt_rtx'); b.version; "
        "print(b._child._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, check=False)
    try:
        descriptor = os.pidfd_open(int(done.stdout))
    except ProcessLookupError:
        return  # it has ended already
    try:
        assert select.select([descriptor], [], [], 30)[0], "the child outlived its parent"
    finally:
        os.close(descriptor)
