"""What of the road over the GPU works on this machine: tried, not guessed."""

from __future__ import annotations

from onnx import TensorProto, helper

from passes.model import Model
from rewriter.backends.base import Backend, BuildFailure, BuildOptions
from rewriter.errors import ConversionError
from rewriter.runtime import device as driver
from rewriter.runtime.gpu.cuda import Cuda
from rewriter.runtime.gpu.engine import TrtRuntime, import_runtime
from rewriter.runtime.gpu.island import cuda_provider_problem
from rewriter.temporary import TemporaryFolder


def gpu_readiness(backend: Backend | None, device: int = 0) -> tuple[tuple[str, str, bool], ...]:
    """Tries the GPU, ONNX Runtime's CUDA provider, and an engine of one addition.

    Args:
        backend: builds that engine; None leaves TensorRT out.
        device: number of the GPU.

    Returns:
        (what was tried, what came of it, whether it works) in order; what comes after a GPU that cannot be used is not
        tried.
    """
    missing = driver.missing_gpu()
    if missing:
        return (("GPU", missing, False),)
    try:
        cuda = Cuda(device=device)
    except ConversionError as error:
        return (("GPU", str(error), False),)
    with cuda:
        major, minor = cuda.compute_capability
        found = [("GPU", f"{cuda.gpu_name}, compute capability {major}.{minor}", True)]
        try:
            problem = cuda_provider_problem(cuda)
        except ConversionError as error:
            problem = str(error)
        found.append(("native nodes", problem or "ONNX Runtime's CUDA provider works", not problem))
        if backend is not None:
            problem = _engine_problem(backend, cuda)
            name = f"{backend.flavour} {backend.version}"
            found.append(("engines", problem or f"those of {name} run", not problem))
    return tuple(found)


def _engine_problem(backend: Backend, cuda: Cuda) -> str:
    """Why engines do not run here; "" when they do."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"], name="add")], "probe", value[:1], value[1:])
    model = Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    with TemporaryFolder("trt-rewriter-") as folder:
        path = folder / "probe.engine"
        try:
            built = backend.build(model, (), BuildOptions(), path)
            if isinstance(built, BuildFailure):
                return f"no engine can be built: {built.reason}"
            with cuda.current(), TrtRuntime(import_runtime(backend.flavour), cuda).load(path) as engine:
                engine.context(0)
        except ConversionError as error:
            return str(error)
    return ""
