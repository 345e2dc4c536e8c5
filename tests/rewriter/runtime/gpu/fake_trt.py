"""A strict double of a TensorRT module: engines are ONNX models, computed by ONNX Runtime on FakeCuda's memory.

Whatever TensorRT would leave undefined (a missing address, memory that is too small, two threads in one context, an
engine that is freed before its contexts, a graph replayed after its context changed) is an AssertionError here, and is
kept in `FakeTrt.faults`, so that nothing can swallow it. What TensorRT reports, as None or False and in its log, is
reported in the same way.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import enum
import functools
import gc
import hashlib
import itertools
import json
import math
import threading
import types
import weakref

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from passes import model as model_module
from rewriter.backends.base import InputProfile
from rewriter.runtime.native import NativeSession

RTX_VERSION = "1.7.1.116"
CLASSIC_VERSION = "10.9.0"
_TYPES = {
    TensorProto.FLOAT: "FLOAT",
    TensorProto.FLOAT16: "HALF",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.FLOAT8E4M3FN: "FP8",
    TensorProto.INT8: "INT8",
    TensorProto.UINT8: "UINT8",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.BOOL: "BOOL",
}
#: Bytes of activation memory per element of the inputs, unless `write_engine` is told otherwise.
_PER_ELEMENT = 4


class Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity = Severity

    def log(self, severity, msg):
        raise NotImplementedError


class IOutputAllocator:
    """Its subclasses must call __init__, as pybind11's must."""

    ready = False

    def __init__(self):
        self.ready = True


TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
TensorLocation = enum.Enum("TensorLocation", ["DEVICE", "HOST"])
DataType = enum.Enum("DataType", [*_TYPES.values(), "INT4", "FP4", "E8M0"])
Strategy = enum.Enum("ExecutionContextAllocationStrategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"])
Specialization = enum.Enum("DynamicShapesKernelSpecializationStrategy", ["LAZY", "EAGER", "NONE"])


def write_engine(
    path,
    model,
    profiles=(),
    *,
    host=(),
    data_dependent=(),
    version=RTX_VERSION,
    targets=(),
    per_element=_PER_ELEMENT,
    refuse="",
    fail_context="",
    fail_enqueue="",
    capturable=True,
):
    """Writes an engine file for `FakeTrt`; returns its path.

    Args:
        path: the file; its folder is made.
        model: the segment, a ModelProto or a Model; unnamed and -1 dimensions of its inputs need profiles.
        profiles: input -> InputProfile, or (minimum, optimum, maximum); `is_values` for shape tensors.
        host: inputs and outputs whose elements TensorRT wants in CPU memory; inputs that a profile gives values for
            are among them anyway.
        data_dependent: outputs whose shape is only known once they are computed.
        version, targets: what it was built with and for; () is for every GPU.
        per_element: bytes of activation memory per element of the inputs.
        refuse, fail_context, fail_enqueue: lines of the log with which the step fails.
        capturable: False when TensorRT would synchronise while it runs.
    """
    proto = model if isinstance(model, onnx.ModelProto) else model_module.to_proto(model)
    ranges = [{name: _as_profile(item) for name, item in profile.items()} for profile in profiles]
    held = {name for profile in ranges for name, item in profile.items() if item.is_values}
    header = {
        "model": base64.b64encode(proto.SerializeToString()).decode(),
        "profiles": [
            {n: [list(i.minimum), list(i.optimum), list(i.maximum), i.is_values] for n, i in profile.items()}
            for profile in ranges
        ],
        "host": sorted({*host, *held}),
        "shape_inputs": sorted(held),
        "data_dependent": list(data_dependent),
        "version": version,
        "targets": list(targets),
        "per_element": per_element,
        "refuse": refuse,
        "fail_context": fail_context,
        "fail_enqueue": fail_enqueue,
        "capturable": capturable and not data_dependent,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(json.dumps(header).encode())
    return path


def _as_profile(item):
    return item if isinstance(item, InputProfile) else InputProfile(*(tuple(dims) for dims in item))


class FakeTrt:
    """The module object. One per test: it is what `TrtRuntime(trt, cuda)` gets as `trt`.

    Args:
        cuda: the FakeCuda whose memory and stream are used.
        classic: True for classic TensorRT: no runtime configuration and no runtime cache.

    Attributes:
        refuse, fail_context, fail_enqueue, fail_cache: a line of the log with which every such step fails from now on.
        faults: what was done wrong; the fixture checks that there is nothing.
        events: every call that matters, in order, as tuples.
        compiled: how many contexts had to compile kernels that no runtime cache held.
        engines, contexts: how many are alive.
    """

    def __init__(self, cuda, *, classic=False):
        self.__name__ = "tensorrt" if classic else "tensorrt_rtx"
        self.__version__ = CLASSIC_VERSION if classic else RTX_VERSION
        self.cuda = cuda
        self.classic = classic
        self.refuse = self.fail_context = self.fail_enqueue = self.fail_cache = ""
        self.faults = []
        self.events = []
        self.compiled = 0
        self.engines = 0
        self.contexts = 0
        self.logger = None
        self.ILogger, self.IOutputAllocator = ILogger, IOutputAllocator
        self.TensorIOMode, self.TensorLocation, self.DataType = TensorIOMode, TensorLocation, DataType
        self.ExecutionContextAllocationStrategy = Strategy
        if not classic:
            self.DynamicShapesKernelSpecializationStrategy = Specialization

    def Runtime(self, logger):  # noqa: N802 -- as it is called there
        self.need(isinstance(logger, ILogger), "the logger is no ILogger")
        self.need(self.logger in (None, logger), "TensorRT keeps its first logger: there was another one before")
        self.logger = logger
        return _Runtime(self)

    def need(self, condition, words):
        if not condition:
            self.faults.append(words)
            raise AssertionError(words)

    def need_device(self):
        """TensorRT works on the device that is the calling thread's current one."""
        current = getattr(self.cuda.runtime.thread, "device", 0)
        self.need(current == self.cuda.device, f"device {current} is the current one, not {self.cuda.device}")

    def say(self, line, severity=Severity.ERROR):
        assert self.logger is not None
        self.logger.log(severity, line)

    def called(self, name):
        return [event[1:] for event in self.events if event[0] == name]

    def finish(self):
        """Fails the test if anything was done wrong, or anything was left open."""
        assert self.faults == []
        if self.engines or self.contexts:
            gc.collect()
        assert (self.engines, self.contexts) == (0, 0), "engines and contexts that were not closed"


class _Runtime:
    def __init__(self, trt):
        self._trt = trt

    def deserialize_cuda_engine(self, data):
        trt = self._trt
        trt.need_device()
        trt.need(isinstance(data, (bytes, bytearray, memoryview)) and len(data), "no serialised engine")
        trt.say(f"Loaded engine size: {len(data) >> 20} MiB", Severity.INFO)
        try:
            header = json.loads(bytes(data))
        except ValueError:
            trt.say(
                "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion "
                "plan->header.size == blobSize failed. In deserialize at /_src/runtime.cpp:77)"
            )
            return None
        line = trt.refuse or header["refuse"] or self._mismatch(header)
        if line:
            trt.say(line)
            return None
        trt.events.append(("deserialize", hashlib.sha256(bytes(data)).hexdigest()))
        return (_ClassicEngine if trt.classic else _RtxEngine)(trt, header)

    def _mismatch(self, header):
        if header["version"] != self._trt.__version__:
            return (
                "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion "
                "stdVersionRead == kSERIALIZATION_VERSION failed.Version tag does not match. Note: Current Version: "
                f"{self._trt.__version__}, Serialized Engine Version: {header['version']})"
            )
        major, minor = self._trt.cuda.compute_capability
        if header["targets"] and f"SM{major}{minor}" not in header["targets"]:
            known = " ".join(f"{target[2:-1]}.{target[-1]}" for target in header["targets"])
            return (
                f"IRuntime::deserializeCudaEngine: Error Code 1: Serialization (The engine cannot run on this GPU, "
                f"which has compute capability {major}.{minor}. Supported compute capabilities: {known})"
            )
        return ""


class _Shared:
    """What an engine and its contexts have in common; it does not keep the engine alive, as TensorRT's does not."""

    def __init__(self, trt, header):
        self.trt = trt
        self.header = header
        self.proto = onnx.load_from_string(base64.b64decode(header["model"]))
        graph = self.proto.graph
        weights = {tensor.name for tensor in graph.initializer}
        self.inputs = {value.name: value for value in graph.input if value.name not in weights}
        self.outputs = {value.name: value for value in graph.output}
        self.values = {**self.inputs, **self.outputs}
        self.profiles = [
            {name: InputProfile(*map(tuple, item[:3]), item[3]) for name, item in profile.items()}
            for profile in header["profiles"]
        ] or [{}]
        self.contexts = 0
        self.shapes_seen = {}

    @functools.cached_property
    def session(self):
        return NativeSession(model_module.from_proto(self.proto))

    def onnx_type(self, name):
        return self.values[name].type.tensor_type.elem_type

    def dtype(self, name):
        return np.dtype(helper.tensor_dtype_to_np_dtype(self.onnx_type(name)))

    def static(self, name):
        shape = self.values[name].type.tensor_type.shape
        return tuple(d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else -1 for d in shape.dim)

    def on_host(self, name):
        return name in self.header["host"]

    def memory(self, shapes):
        """Bytes of activation memory at these shapes of the inputs."""
        wanted = self.header["per_element"] * sum(math.prod(shape) for shape in shapes.values())
        return -(-wanted // 256) * 256

    def range(self, name, profile):
        """The range of an input's shape, as three shapes."""
        item = self.profiles[profile].get(name)
        if item is None or item.is_values:
            return (self.static(name),) * 3
        return item.minimum, item.optimum, item.maximum

    def output_shapes(self, shapes, values):
        """Output -> shape; -1 where the data decide."""
        key = (tuple(sorted(shapes.items())), tuple((n, tuple(v.ravel().tolist())) for n, v in sorted(values.items())))
        if key not in self.shapes_seen:
            late = self.header["data_dependent"]
            found = self._inferred(shapes, values) if late else {}
            if len(late) < len(self.outputs):
                zeros = {n: values.get(n, np.zeros(shapes[n], self.dtype(n))) for n in self.inputs}
                found.update({n: v.shape for n, v in self.session.run(zeros).items() if n not in late})
            self.shapes_seen[key] = found
        return self.shapes_seen[key]

    def _inferred(self, shapes, values):
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        for value in proto.graph.input:
            if value.name in shapes:
                elem = value.type.tensor_type.elem_type
                value.CopyFrom(helper.make_tensor_value_info(value.name, elem, shapes[value.name]))
        proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in values.items())
        for value in proto.graph.output:
            value.type.tensor_type.ClearField("shape")
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        dims = {value.name: value.type.tensor_type.shape.dim for value in inferred.graph.output}
        return {n: tuple(d.dim_value if d.HasField("dim_value") else -1 for d in dims[n]) for n in self.outputs}


class _Engine:
    def __init__(self, trt, header):
        self._trt = trt
        self._shared = _Shared(trt, header)
        trt.engines += 1

    def __del__(self):
        shared = getattr(self, "_shared", None)
        if shared is not None:
            self._trt.engines -= 1
            if shared.contexts:
                self._trt.faults.append("an engine was freed before its contexts")

    @property
    def num_io_tensors(self):
        return len(self._shared.values)

    @property
    def num_optimization_profiles(self):
        return len(self._shared.profiles)

    @property
    def device_memory_size_v2(self):
        shared = self._shared
        largest = [{n: shared.range(n, i)[2] for n in shared.inputs} for i in range(len(shared.profiles))]
        return max(map(shared.memory, largest))

    def get_tensor_name(self, index):
        return [*self._shared.inputs, *self._shared.outputs][index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self._shared.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return DataType[_TYPES[self._shared.onnx_type(name)]]

    def get_tensor_shape(self, name):
        return list(self._shared.static(name))

    def get_tensor_location(self, name):
        return TensorLocation.HOST if self._shared.on_host(name) else TensorLocation.DEVICE

    def is_shape_inference_io(self, name):
        return name in self._shared.header["shape_inputs"]

    def get_tensor_profile_shape(self, name, profile_index):
        self._trt.need(name in self._shared.inputs, f"get_tensor_profile_shape: {name!r} is no input")
        return [list(dims) for dims in self._shared.range(name, profile_index)]

    def get_tensor_profile_values(self, profile_index, name):  # in this order, whatever the bindings' help says
        self._trt.need(
            isinstance(profile_index, int) and isinstance(name, str), "get_tensor_profile_values(index, name)"
        )
        self._trt.need(self.is_shape_inference_io(name), f"get_tensor_profile_values: {name!r} holds no shape")
        item = self._shared.profiles[profile_index].get(name)
        return [] if item is None else [list(item.minimum), list(item.optimum), list(item.maximum)]

    def _create(self, strategy, specialization, cache):
        trt, shared = self._trt, self._shared
        trt.need_device()
        line = trt.fail_context or shared.header["fail_context"]
        if line:
            trt.say(line)
            return None
        kernels = hashlib.sha256(shared.header["model"].encode()).hexdigest()
        if cache is None or kernels not in cache.kernels:
            trt.compiled += 1
        if cache is not None:
            cache.kernels.add(kernels)
        trt.events.append(("create_context", strategy.name, specialization))
        return _ExecutionContext(trt, shared, strategy)


class _ClassicEngine(_Engine):
    def create_execution_context(self, strategy):
        self._trt.need(isinstance(strategy, Strategy), "create_execution_context takes a strategy")
        return self._create(strategy, "", None)


class _RtxEngine(_Engine):
    def create_runtime_config(self):
        return _RuntimeConfig(self._trt)

    def create_execution_context(self, config):
        self._trt.need(isinstance(config, _RuntimeConfig), "create_execution_context takes a runtime configuration")
        chosen = config.dynamic_shapes_kernel_specialization_strategy
        return self._create(config.strategy, chosen.name, config.cache)


class _RuntimeConfig:
    def __init__(self, trt):
        self._trt = trt
        self.strategy = Strategy.STATIC
        self.dynamic_shapes_kernel_specialization_strategy = Specialization.LAZY
        self.cache = None

    def set_execution_context_allocation_strategy(self, strategy):
        self._trt.need(isinstance(strategy, Strategy), "no allocation strategy")
        self.strategy = strategy

    def create_runtime_cache(self):
        return _RuntimeCache(self._trt)

    def set_runtime_cache(self, cache):
        self._trt.need(isinstance(cache, _RuntimeCache), "no runtime cache")
        self.cache = cache
        return True


class _RuntimeCache:
    def __init__(self, trt):
        self._trt = trt
        self.kernels = set()

    def serialize(self):
        if self._trt.fail_cache:
            self._trt.say(self._trt.fail_cache)
            return None
        return bytearray(b"kernels" + json.dumps(sorted(self.kernels)).encode())

    def deserialize(self, data):
        if self._trt.fail_cache or not bytes(data).startswith(b"kernels"):
            self._trt.say(self._trt.fail_cache or "Error Code 1: Serialization (the runtime cache is of another kind)")
            return False
        self.kernels = set(json.loads(bytes(data)[len(b"kernels") :]))
        return True


class _ExecutionContext:
    def __init__(self, trt, shared, strategy):
        self._trt = trt
        self._shared = shared
        self._strategy = strategy
        self._thread = threading.Lock()
        self._profile = None if len(shared.profiles) > 1 else 0
        self._shapes = {name: shared.static(name) for name in shared.inputs if -1 not in shared.static(name)}
        self._addresses = {}
        self._allocators = {}
        self._memory = None
        self._generation = 0  # grows with every change of shapes: graphs that were captured before are void
        shared.contexts += 1
        trt.contexts += 1

    def __del__(self):
        if hasattr(self, "_generation"):
            self._shared.contexts -= 1
            self._trt.contexts -= 1

    @contextlib.contextmanager
    def _alone(self):
        self._trt.need(self._thread.acquire(blocking=False), "two threads are inside one context")
        try:
            yield
        finally:
            self._thread.release()

    def set_optimization_profile_async(self, index, stream):
        with self._alone():
            self._trt.need(stream == self._trt.cuda.stream, "a stream that is not the runtime's")
            if not 0 <= index < len(self._shared.profiles):
                self._trt.say(f"Error Code 3: API Usage Error (profile {index} is out of range)")
                return False
            self._trt.events.append(("profile", index))
            self._profile = index
            self._generation += 1
            self._shapes = {n: s for n, s in self._shapes.items() if -1 not in self._shared.static(n)}
            self._memory = None
            return True

    def set_input_shape(self, name, shape):
        with self._alone():
            trt, shared = self._trt, self._shared
            trt.need(isinstance(shape, (tuple, list)), "a shape is a tuple or a list")
            trt.need(self._profile is not None, "a shape was set before the profile was chosen")
            if name not in shared.inputs:
                trt.say(f"IExecutionContext::setInputShape: Error Code 3: API Usage Error (unknown input {name})")
                return False
            low, _, high = shared.range(name, self._profile)
            fits = len(shape) == len(low)
            fits = fits and all(a in (-1, d) or a <= d <= b for a, d, b in zip(low, shape, high, strict=True))
            if not fits:
                trt.say(
                    "IExecutionContext::setInputShape: Error Code 3: API Usage Error (Parameter check failed, "
                    f"condition: satisfyProfile. Set dimension {list(shape)} for tensor {name} does not satisfy any "
                    f"optimization profiles. Valid range for profile {self._profile}: {list(low)}..{list(high)}.)"
                )
                return False
            trt.events.append(("set_input_shape", name, tuple(shape)))
            if self._shapes.get(name) != tuple(shape):
                self._generation += 1
            self._shapes[name] = tuple(shape)
            return True

    def set_tensor_address(self, name, memory):
        with self._alone():
            self._trt.need(isinstance(memory, int) and memory > 0, f"{name!r} cannot lie at {memory!r}")
            if name not in self._shared.values:
                self._trt.say(f"IExecutionContext::setTensorAddress: Error Code 3: API Usage Error (unknown {name})")
                return False
            self._trt.events.append(("set_tensor_address", name, memory))
            self._addresses[name] = memory
            if name in self._shared.header["shape_inputs"]:
                self._generation += 1
            return True

    def set_output_allocator(self, name, output_allocator):
        with self._alone():
            if output_allocator is None:
                return self._allocators.pop(name, None) is not None
            self._trt.need(isinstance(output_allocator, IOutputAllocator), "no IOutputAllocator")
            self._trt.need(output_allocator.ready, "IOutputAllocator.__init__ was not called")
            if name not in self._shared.outputs:
                return False
            self._allocators[name] = weakref.ref(output_allocator)  # TensorRT does not keep it alive
            return True

    def infer_shapes(self):
        with self._alone():
            missing = self._missing()
            if not missing:
                self._outputs()
            return missing

    def get_tensor_shape(self, name):
        with self._alone():
            if name in self._shared.inputs:
                return list(self._shapes.get(name, self._shared.static(name)))
            return [-1] * len(self._shared.static(name)) if self._missing() else list(self._outputs()[name])

    def update_device_memory_size_for_shapes(self):
        with self._alone():
            missing = [name for name in self._shared.inputs if name not in self._shapes]
            self._trt.need(not missing, f"the memory was asked for before the shapes of {missing} were set")
            self._memory = None
            return self._shared.memory(self._shapes)

    def set_device_memory(self, memory, size):
        with self._alone():
            self._trt.need(self._strategy is Strategy.USER_MANAGED, "the context has memory of its own")
            self._trt.need(memory % 256 == 0, "activation memory must be aligned to 256 bytes")
            self._memory = (memory, size)

    def is_stream_capturable(self, stream):
        self._trt.need(stream == self._trt.cuda.stream, "a stream that is not the runtime's")
        return self._shared.header["capturable"]

    def execute_async_v3(self, stream_handle):
        with self._alone():
            trt = self._trt
            trt.need_device()
            trt.need(stream_handle == trt.cuda.stream, "a stream that is not the runtime's")
            job = self._job()
            trt.events.append(("enqueue", self._profile, dict(job.shapes)))
            line = trt.fail_enqueue or self._shared.header["fail_enqueue"]
            if line:
                trt.say(line)
                return False
            if self._allocators:
                return self._run_late(job)
            trt.cuda.launch(self._work(job, captured=trt.cuda.capturing))
            return True

    def _work(self, job, *, captured):
        """What runs on the stream; it keeps its context from nothing, as TensorRT's does not."""
        generation, alive = self._generation, weakref.ref(self)

        def run():
            context = alive()
            job.trt.need(context is not None, "a context was closed before its work was done, or its graph replayed")
            same = not captured or context._generation == generation
            job.trt.need(same, "a graph was replayed after the shapes of its context changed")
            job.write(job.compute())

        return run

    def _missing(self):
        shared = self._shared
        late = [name for name in shared.header["shape_inputs"] if name not in self._addresses]
        return sorted({*late, *(name for name in shared.inputs if name not in self._shapes)})

    def _host_values(self, names):
        return {n: _read(self._addresses[n], self._shapes[n], self._shared.dtype(n)) for n in names}

    def _outputs(self):
        values = self._host_values(self._shared.header["shape_inputs"])
        for name, array in values.items():
            item = self._shared.profiles[self._profile][name]
            fits = all(a <= v <= b for a, v, b in zip(item.minimum, array.ravel(), item.maximum, strict=True))
            if not fits:
                line = f"Error Code 3: API Usage Error (values {array.tolist()} of {name} are not in the profile)"
                self._trt.say(line)
                raise RuntimeError("shape inference failed")
        return self._shared.output_shapes(self._shapes, values)

    def _job(self):
        """What one enqueue computes, checked: TensorRT takes shapes, values and addresses as they are now."""
        trt, shared = self._trt, self._shared
        trt.need(self._profile is not None, "enqueued before the profile was chosen")
        trt.need(not self._missing(), f"enqueued without {self._missing()}")
        outputs = self._outputs()
        for name in shared.values:
            late = name in self._allocators
            trt.need(late or name in self._addresses, f"enqueued without an address of {name!r}")
            trt.need(
                late or -1 not in outputs.get(name, ()), f"{name!r} needs an allocator: its shape depends on the data"
            )
        needed = shared.memory(self._shapes)
        if self._strategy is Strategy.USER_MANAGED and needed:
            trt.need(self._memory is not None, "enqueued without activation memory")
            trt.need(self._memory[1] >= needed, f"activation memory of {self._memory[1]} bytes: {needed} are needed")
        job = _Job(trt, shared, dict(self._shapes), dict(self._addresses), set(self._allocators), outputs)
        job.memory = (self._memory[0], needed) if self._memory is not None and needed else None
        job.values = self._host_values([n for n in shared.inputs if shared.on_host(n)])
        job.check()
        return job

    def _run_late(self, job):
        """With allocators TensorRT waits for the data; in a capture it cannot."""
        trt = self._trt
        if trt.cuda.capturing:
            trt.say(
                "IExecutionContext::enqueueV3: Error Code 3: API Usage Error (not permitted while a stream is captured)"
            )
            return False
        trt.cuda.runtime.drain()
        results = job.compute()
        for name, reference in self._allocators.items():
            allocator, array = reference(), results[name]
            trt.need(allocator is not None, f"the output allocator of {name!r} is gone")
            place = self._addresses.get(name, 0)
            pointer = allocator.reallocate_output_async(name, place, array.nbytes, 256, trt.cuda.stream)
            if not pointer:
                trt.say(f"IExecutionContext::enqueueV3: Error Code 2: OutOfMemory (no memory for output {name})")
                return False
            allocator.notify_shape(name, list(array.shape))
            job.addresses[name] = pointer
        job.late.clear()
        job.outputs = {name: array.shape for name, array in results.items()}
        trt.cuda.launch(lambda: job.write(results))
        return True


class _Job(types.SimpleNamespace):
    """One enqueued computation: where its tensors lie and how large they are, as they were then."""

    def __init__(self, trt, shared, shapes, addresses, late, outputs):
        super().__init__(trt=trt, shared=shared, shapes=shapes, addresses=addresses, late=late, outputs=outputs)
        self.memory = None
        self.values = {}

    def places(self):
        """(name, address, bytes) of all that lies on the device."""
        shapes = {**self.shapes, **self.outputs}
        for name, shape in shapes.items():
            if name not in self.late and not self.shared.on_host(name):
                yield name, self.addresses[name], math.prod(shape) * self.shared.dtype(name).itemsize
        if self.memory is not None:
            yield "activations", *self.memory

    def check(self):
        """Every place is memory that was handed out, and none that is written overlaps another."""
        places = sorted(self.places(), key=lambda place: place[1:])
        for name, pointer, nbytes in places:
            try:
                self.trt.cuda.check(pointer, nbytes)
            except AssertionError as error:
                self.trt.need(False, f"{name!r}: {error}")
        for (one, start, nbytes), (two, after, more) in itertools.pairwise(places):
            both_read = one in self.shapes and two in self.shapes
            self.trt.need(both_read or not more or start + nbytes <= after, f"{one!r} and {two!r} overlap")

    def compute(self):
        self.check()
        feeds = dict(self.values)
        for name in self.shared.inputs:
            if name not in feeds:
                feeds[name] = _read(self.addresses[name], self.shapes[name], self.shared.dtype(name))
        if self.memory is not None:
            ctypes.memset(self.memory[0], 0xAB, self.memory[1])  # whoever keeps something there notices
        return self.shared.session.run(feeds)

    def write(self, results):
        self.check()
        for name, array in results.items():
            self.trt.need(array.shape == self.outputs[name], f"{name!r} came out as {array.shape}, not as inferred")
            data = np.ascontiguousarray(array)
            if data.nbytes:
                ctypes.memmove(self.addresses[name], data.ctypes.data, data.nbytes)


def _read(pointer, shape, dtype):
    """A copy of what lies at an address."""
    nbytes = math.prod(shape) * dtype.itemsize
    return np.frombuffer(ctypes.string_at(pointer, nbytes), dtype=dtype).reshape(shape)
