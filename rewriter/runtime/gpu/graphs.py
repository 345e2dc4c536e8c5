"""From a bound plan to a CUDA graph that is known to repeat it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from rewriter.errors import CaptureError, CudaError, EngineError
from rewriter.runtime.gpu.discovery import reason_of
from rewriter.runtime.gpu.island import to_host
from rewriter.runtime.gpu.plan import FixedPlan
from rewriter.runtime.gpu.values import DeviceValue

if TYPE_CHECKING:
    from rewriter.runtime.gpu.cuda import Cuda

#: Two runs of the same kernels on the same data may differ by the order of sums; a graph that reads old data differs
#: by more.
_TOLERANCE = 1e-2


def examine(plan: FixedPlan) -> bool:
    """Finds out, once for a plan that ran, whether its islands must wait for the device; then there is no graph.

    Returns:
        False when a failed capture may have left an error in ONNX Runtime (see `absorb_capture_error`).
    """
    try:
        reason = plan.examine()
    except CaptureError as error:
        plan.give_up_graph(reason_of(error))
        return False
    if reason:
        plan.give_up_graph(reason)
    return True


def make_graph(plan: FixedPlan, put: Callable[[], None], cuda: Cuda) -> bool:
    """Captures a plan and proves the graph; where that fails the plan goes on step by step, with the reason.

    1. The steps run with contexts of their own, eagerly, on the call's inputs: these are the right outputs.
    2. They run on other inputs: what a graph could wrongly find in memory is from these.
    3. The steps are captured, and the graph runs on the call's inputs: its outputs must be those of 1.

    Waits for the stream; done once for a plan.

    Args:
        plan: ran at least once.
        put: enqueues the copies of the call's inputs to `plan.inputs`.
        cuda: where it runs.

    Returns:
        False when a failed capture may have left an error in ONNX Runtime (see `absorb_capture_error`).
    """
    try:
        plan.use_own_contexts()
        put()
        plan.run()
        expected = _outputs(plan, cuda)
        reason = plan.why_not_capturable()
        if reason:
            plan.give_up_graph(reason)
            return True
        put()
        _disturb(plan, cuda)
        plan.run()
        cuda.synchronize()
    except (EngineError, CudaError) as error:
        plan.give_up_graph(reason_of(error))
        return True
    try:
        plan.capture()
        put()
        plan.run()
        actual = _outputs(plan, cuda)
    except CudaError as error:
        plan.give_up_graph(reason_of(error))
        return False
    for name, array in expected.items():
        if not _repeats(actual[name], array):
            plan.give_up_graph(f"the graph does not repeat the steps: output {name!r} differs")
    return True


def _outputs(plan: FixedPlan, cuda: Cuda) -> dict[str, np.ndarray]:
    return {name: to_host(value, cuda) for name, value in plan.outputs.items() if isinstance(value, DeviceValue)}


def _disturb(plan: FixedPlan, cuda: Cuda) -> None:
    """Writes other values into the inputs; each stays in the range that it has (indices stay indices)."""
    staged = []
    for value in plan.inputs.values():
        array = to_host(value, cuda)
        memory = cuda.pinned(array.nbytes)
        staged.append(memory)
        np.copyto(memory.array(array.dtype, array.shape), _other(array))
        cuda.to_device(value.pointer, memory.pointer, array.nbytes)
    cuda.synchronize()
    for memory in staged:
        memory.release()


def _other(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "b":
        return ~array
    if array.dtype.kind in "iu":
        return array // 2
    return np.asarray(array * np.asarray(0.5, array.dtype), array.dtype)


def _repeats(actual: np.ndarray, expected: np.ndarray) -> bool:
    if actual.dtype.kind in "biu":
        return bool(np.mean(actual != expected) <= _TOLERANCE) if actual.size else True
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    same = np.isclose(
        a, b, rtol=0, atol=_TOLERANCE * float(np.max(np.abs(b[np.isfinite(b)]), initial=0.0)), equal_nan=True
    )
    return bool(same.all())
