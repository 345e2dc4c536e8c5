"""The exported model against TensorFlow: every output of every sample, and no benefit of the doubt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from passes.island_node import island_nodes
from passes.model import Model
from rewriter.errors import ExportError, VerificationError
from rewriter.frontend.samples import Run, one_line
from rewriter.frontend.suspects import Suspects
from rewriter.runtime.strings import to_text, to_valid_text
from rewriter.source import Signature, Verification

#: Largest allowed max|difference| / max|reference| for graphs in float32 and wider.
TOLERANCE = 1e-4
#: The same where the graph computes in float16 or bfloat16.
REDUCED_TOLERANCE = 1e-2
#: The same where it emulates quantisation: the order of a sum decides on which side of a half quantum a value falls.
QUANTISED_TOLERANCE = 3e-2


def verify(
    model: Model,
    signature: Signature,
    runs: Sequence[Run],
    tolerance: float,
    origin: str,
    upstream: Suspects | None = None,
) -> Verification:
    """Runs `model` natively on the samples of `runs` and compares.

    Floating-point outputs may differ by `tolerance`, relative to the largest reference value of the output; NaN and
    infinities must stand in the same places. Integers, booleans and strings must be equal. `upstream` tells the
    operators that an output depends on.

    Raises:
        ExportError: ONNX Runtime does not take the model.
        VerificationError: outputs differ; the message names each and its difference, and what it depends on.
    """
    from rewriter.runtime.mapped_weights import has_files
    from rewriter.runtime.native import import_onnxruntime, open_native
    from rewriter.runtime.other_errors import first_line

    import_onnxruntime()
    worst = {spec.name: 0.0 for spec in signature.outputs}
    faults: dict[str, str] = {}
    try:
        session = open_native(model, lean=has_files(model))
        for run in runs:
            results = session.run({spec.tensor: _feed(run.inputs[spec.name], model) for spec in signature.inputs})
            for spec in signature.outputs:
                difference, fault = compare(run.outputs[spec.name], results[spec.tensor], tolerance)
                worst[spec.name] = max(worst[spec.name], difference)
                if fault:
                    faults.setdefault(spec.name, fault)
    except Exception as error:  # ONNX Runtime's errors share no narrower base class
        raise ExportError(
            f"ONNX Runtime cannot run the export of {origin}: {one_line(first_line(error))}. The TensorFlow op that it "
            "is about can stay in TensorFlow: keep_in_tensorflow=[...] (--keep-in-tensorflow)"
        ) from error
    if faults:
        raise VerificationError(_told(faults, tolerance, origin, upstream))
    return Verification(len(runs), worst)


def _told(faults: Mapping[str, str], tolerance: float, origin: str, upstream: Suspects | None) -> str:
    """What differs, and what to do."""
    told = "; ".join(f"output {name!r} {fault}" for name, fault in faults.items())
    ops = sorted({op for name in faults for op in upstream(name)}) if upstream else []
    names = f"one of {', '.join(ops)}" if len(ops) > 1 else "".join(ops) or "a TensorFlow op that it is computed with"
    return (
        f"the export of {origin} does not compute what TensorFlow computes: {told}. Pass typical inputs as "
        f"samples=..., let the op that differs ({names}) stay in TensorFlow with keep_in_tensorflow=[...] "
        f"(--keep-in-tensorflow), or accept the difference with tolerance=... (--tolerance) above {tolerance:g}"
    )


def compare(reference: np.ndarray, result: np.ndarray, tolerance: float) -> tuple[float, str]:
    """(relative difference, what is wrong or ""); a difference in place or kind counts as infinite."""
    if reference.shape != result.shape:
        return float("inf"), f"has shape {list(result.shape)} instead of {list(reference.shape)}"
    if reference.dtype.kind in "OSU":
        wrong = int(np.sum(to_valid_text(reference) != to_valid_text(result)))
        return (float("inf"), f"has {wrong} different strings") if wrong else (0.0, "")
    if reference.dtype.kind in "biu":
        wrong = int(np.sum(reference != result))
        return (float("inf"), f"has {wrong} of {reference.size} values different") if wrong else (0.0, "")
    return _compare_floats(_wide(reference), _wide(result), tolerance)


def _compare_floats(reference: np.ndarray, result: np.ndarray, tolerance: float) -> tuple[float, str]:
    finite = np.isfinite(reference)
    if not np.array_equal(finite, np.isfinite(result)):
        return float("inf"), "has NaN or infinity in other places"
    if not np.array_equal(reference[~finite], result[~finite], equal_nan=True):
        return float("inf"), "has other NaN or infinite values"
    if not finite.any():
        return 0.0, ""
    largest = float(np.abs(reference[finite]).max())
    difference = float(np.abs(reference[finite] - result[finite]).max())
    relative = difference / largest if largest else (0.0 if difference == 0 else float("inf"))
    if relative > tolerance:
        return relative, f"differs by {difference:.3g} (relative {relative:.3g}, allowed {tolerance:g})"
    return relative, ""


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _feed(array: np.ndarray, model: Model) -> np.ndarray:
    """Strings as `str`: of `bytes` ONNX Runtime would quietly take the Python notation.

    Bytes that are no text (encoded images) reach islands of TensorFlow unchanged; ONNX Runtime has no place for them.
    """
    if array.dtype.kind not in "OSU":
        return array
    return to_text(array) if any(True for _ in island_nodes(model.proto)) else to_valid_text(array)
