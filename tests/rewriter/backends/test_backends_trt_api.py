"""The TensorRT calls against a module that records them: what classic TensorRT, which needs a GPU, is told."""

from __future__ import annotations

import enum
import functools
import types

import pytest

from rewriter.backends.base import BuildFailure, BuildOptions, BuiltEngine, InputProfile
from rewriter.backends.trt_api import Session, Weight


class Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2


class Logger:
    Severity = Severity

    def log(self, severity, msg):
        raise NotImplementedError


class Tensor(types.SimpleNamespace):
    is_shape_tensor = False


class Config:
    def __init__(self, calls):
        self._calls = calls

    def __setattr__(self, name, value):
        if not name.startswith("_"):
            self._calls.append((name, value))
        object.__setattr__(self, name, value)

    def __getattr__(self, name):
        def call(*args):
            self._calls.append((name, *args))
            return 0 if name == "add_optimization_profile" else True

        return call


class Profile:
    def __init__(self, calls):
        self._calls = calls

    def __getattr__(self, name):
        return lambda *args: self._calls.append((name, *args))


class Builder:
    def __init__(self, module, logger):
        self._module = module
        self._logger = logger

    def create_network(self, flags):
        self._module.calls.append(("create_network", flags))
        inputs = self._module.inputs
        return types.SimpleNamespace(num_inputs=len(inputs), get_input=inputs.__getitem__, num_layers=5)

    def create_builder_config(self):
        return Config(self._module.calls)

    def create_optimization_profile(self):
        return Profile(self._module.calls)

    def build_serialized_network(self, network, config):
        for severity, line in self._module.says:
            self._logger.log(severity, line)
        return self._module.script(config) if self._module.script else self._module.plan


class Parser:
    num_errors = 0

    def __init__(self, module, network, logger):
        self._module = module
        self._logger = logger

    def load_model_proto(self, data):
        return True

    def load_initializer(self, *args):
        self._module.calls.append(("load_initializer", *args))
        return True

    def parse_model_proto(self):
        if not self._module.parses:
            self._logger.log(Severity.ERROR, "it said so in the log")
        return self._module.parses


class FakeModule:
    """As much of TensorRT as is used; `plan` is what a build returns, `script` is run instead of building."""

    __version__ = "10.9.0"
    ILogger = Logger
    MemoryPoolType = types.SimpleNamespace(WORKSPACE="WORKSPACE")
    BuilderFlag = types.SimpleNamespace(TF32="TF32")
    IProgressMonitor = type("IProgressMonitor", (), {})

    def __init__(self, *, strong=True, targets=(), plan=b"engine", inputs=(), says=(), parses=True, script=None):
        self.calls = []
        self.plan, self.inputs, self.says, self.parses, self.script = plan, list(inputs), says, parses, script
        names = {"STRONGLY_TYPED": 1} if strong else {"EXPLICIT_BATCH": 0}
        self.NetworkDefinitionCreationFlag = enum.IntEnum("Flag", names)
        if targets:
            self.ComputeCapability = enum.Enum("ComputeCapability", ["NONE", "CURRENT", *targets])
        self.Builder = functools.partial(Builder, self)
        self.OnnxParser = functools.partial(Parser, self)

    def called(self, name):
        return [call[1:] for call in self.calls if call[0] == name]


BATCHED = Tensor(name="x", shape=(-1, 4))
PROFILE = {"x": InputProfile((1, 4), (2, 4), (8, 4))}


def build(module, tmp_path, profiles=(PROFILE,), step=None, **options):
    return Session(module).build(b"onnx", (), profiles, BuildOptions(**options), tmp_path / "e.engine", step=step)


@pytest.mark.parametrize(("strong", "flags"), [(True, 2), (False, 0)])
def test_networks_are_strongly_typed_wherever_the_module_knows_the_flag(strong, flags):
    module = FakeModule(strong=strong)
    assert Session(module).parse(b"onnx", [Weight("w", 4096, 16)]) == ()
    assert module.called("create_network") == [(flags,)]
    assert module.called("load_initializer") == [("w", 4096, 16)]


def test_classic_tensorrt_is_told_no_targets(tmp_path):
    module = FakeModule(inputs=[BATCHED])
    outcome = build(module, tmp_path, workspace_bytes=123, optimization_level=2)
    assert isinstance(outcome, BuiltEngine)
    assert (outcome.size, outcome.layers) == (6, 5)
    assert outcome.path.read_bytes() == b"engine"
    assert Session(module).known_targets() == ()
    assert module.called("set_memory_pool_limit") == [("WORKSPACE", 123)]
    assert module.called("builder_optimization_level") == [(2,)]
    assert module.called("set_shape") == [("x", [1, 4], [2, 4], [8, 4])]
    assert module.called("num_compute_capabilities") == []
    assert len(module.called("add_optimization_profile")) == 1


def test_tf32_is_off_unless_asked_for(tmp_path):
    module = FakeModule()
    build(module, tmp_path, ())
    assert (module.called("clear_flag"), module.called("set_flag")) == ([("TF32",)], [])
    module = FakeModule()
    build(module, tmp_path, (), tf32=True)
    assert (module.called("clear_flag"), module.called("set_flag")) == ([], [("TF32",)])


def test_targets_are_set_in_order_and_sorted_by_number_when_listed(tmp_path):
    module = FakeModule(targets=["SM120", "SM75", "SM89"])
    build(module, tmp_path, (), targets=("SM120", "SM89"))
    assert Session(module).known_targets() == ("SM75", "SM89", "SM120")
    assert module.called("num_compute_capabilities") == [(2,)]
    assert [c.name for c, _ in module.called("set_compute_capability")] == ["SM120", "SM89"]
    assert build(module, tmp_path, (), targets=("SM90",)).reason.startswith("this TensorRT cannot build for SM90")


def test_a_static_network_gets_no_profile(tmp_path):
    module = FakeModule(inputs=[Tensor(name="x", shape=(3, 4))])
    assert isinstance(build(module, tmp_path, ()), BuiltEngine)
    assert module.called("add_optimization_profile") == []


def test_a_shape_tensor_gets_values(tmp_path):
    module = FakeModule(inputs=[Tensor(name="s", shape=(2,), is_shape_tensor=True)])
    build(module, tmp_path, ({"s": InputProfile((1, 4), (2, 4), (8, 4), is_values=True)},))
    assert module.called("set_shape_input") == [("s", [1, 4], [2, 4], [8, 4])]
    assert module.called("set_shape") == []


def test_a_failed_build_is_explained_by_the_log_alone(tmp_path):
    says = [
        (Severity.WARNING, "a warning"),
        (Severity.ERROR, "Error Code 10: Could not find any implementation for n."),
    ]
    outcome = build(FakeModule(plan=None, says=says), tmp_path, ())
    assert isinstance(outcome, BuildFailure)
    assert outcome.kind == "unsupported"
    assert outcome.log == ("Error Code 10: Could not find any implementation for n.",)
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_without_an_error_object_is_explained_by_the_log():
    (error,) = Session(FakeModule(parses=False)).parse(b"onnx", ())
    assert (error.node, error.stage, error.message) == (-1, "import", "it said so in the log")


def test_progress_counts_steps_of_nested_phases_and_stays_cancelled(tmp_path):
    seen, answers = [], []

    def script(config):
        monitor = config.progress_monitor
        monitor.phase_start("outer", None, 2)
        monitor.phase_start("inner", "outer", 3)
        answers.append(monitor.step_complete("inner", 0))
        monitor.phase_finish("inner")
        answers.append(monitor.step_complete("outer", 0))
        monitor.phase_finish("outer")
        answers.append(monitor.step_complete("outer", 1))

    def step(*event):
        seen.append(event)
        return event != ("outer", 1, 2)

    build(FakeModule(script=script), tmp_path, (), step)
    assert seen[:5] == [("outer", 0, 2), ("inner", 0, 3), ("inner", 1, 3), ("inner", 3, 3), ("outer", 1, 2)]
    assert answers == [True, False, False]
