"""`TrtRewriterRunner`: a converted model as one of polygraphy's runners."""

from __future__ import annotations

import collections
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from rewriter.errors import InvalidParameterError
from rewriter.polygraphy_runners.metadata import narrowed, tensor_metadata, widened
from rewriter.polygraphy_runners.talk import import_polygraphy, one_line_errors
from rewriter.source import Signature


@runtime_checkable
class Runnable(Protocol):
    """What a runner runs; `rewriter.ConvertedFunction` is one.

    An object that also has `prepare(inputs)` is given the inputs before the clock starts.
    """

    signature: Signature

    def run(self, inputs: Any) -> dict[str, Any]:
        """Public output name -> array, for a dict of arrays by public input name."""
        ...

    def close(self) -> None:
        """Frees what it holds."""
        ...


def opened(source: Runnable | Callable[[], Runnable]) -> Runnable:
    """What a runner was given: a model as it is, a loader called.

    Raises:
        InvalidParameterError: it is neither.
    """
    found: Any = source
    if not isinstance(found, Runnable) and callable(found):
        found = found()
    if not isinstance(found, Runnable):
        raise InvalidParameterError(
            f"TrtRewriterRunner takes a ConvertedFunction, or a loader (LoadArtifact, ConvertModel), not {found!r}"
        )
    return found


def timed_run(model: Any, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """Runs arrays (or torch tensors, and then the outputs are some) through a model.

    Returns:
        The outputs by name, and the seconds of the run itself: engines are built before the clock starts.
    """
    array = import_polygraphy("polygraphy.util").array
    torch = any(array.is_torch(value) for value in inputs.values())
    feeds = narrowed({name: array.to_numpy(value) for name, value in inputs.items()}, model.signature.inputs)
    prepare = getattr(model, "prepare", None)
    if prepare is not None:
        prepare(feeds)
    start = time.perf_counter()
    outputs = model.run(feeds)
    seconds = time.perf_counter() - start
    found = widened(outputs)
    return {name: array.to_torch(value) for name, value in found.items()} if torch else found, seconds


@functools.cache
def _runner_class() -> Any:
    base = import_polygraphy("polygraphy.backend.base").BaseRunner

    class TrtRewriterRunner(base):  # type: ignore[misc, valid-type]
        """Runs a converted model.

        Args:
            function: a `rewriter.ConvertedFunction`, which the caller closes; or a loader (`LoadArtifact`,
                `ConvertModel`, any callable), whose result lives from `activate()` to `deactivate()`.
            name: name of the runner; default: one with a counter and what the loader says of itself
                ("trt-rewriter-FP16-N0-...").

        Raises:
            MissingDependencyError: polygraphy is not installed.
        """

        def __init__(self, function: Any, name: str | None = None) -> None:
            label = getattr(function, "label", "")
            super().__init__(name=name, prefix=f"trt-rewriter-{label}" if label else "trt-rewriter")
            self._function = function

        def activate_impl(self) -> None:
            with one_line_errors():
                self.function = opened(self._function)

        def get_input_metadata_impl(self) -> Any:
            with one_line_errors():
                return tensor_metadata(self.function.signature.inputs)

        def infer_impl(self, feed_dict: Mapping[str, Any]) -> collections.OrderedDict[str, Any]:
            with one_line_errors():
                outputs, self.inference_time = timed_run(self.function, feed_dict)
            return collections.OrderedDict(outputs)

        def deactivate_impl(self) -> None:
            function = self.function
            del self.function
            if function is not self._function:
                with one_line_errors():
                    function.close()

    # Pickling finds a class by these two; the function that made it is no place to look.
    TrtRewriterRunner.__module__, TrtRewriterRunner.__qualname__ = __name__, "TrtRewriterRunner"
    return TrtRewriterRunner


def __getattr__(name: str) -> Any:
    if name == "TrtRewriterRunner":
        return _runner_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
