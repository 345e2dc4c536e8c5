"""A conversion in memory that is run: engines for the shapes that come."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rewriter.errors import ConversionError
from rewriter.polygraphy_runners.talk import inform
from rewriter.runtime.function import counted
from rewriter.shapes.sampling import check_shapes, unknown_dimensions

if TYPE_CHECKING:
    from rewriter.converter import Converter

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


class InMemoryModel:
    """A converted model whose engines follow the inputs. One thread at a time; a context manager.

    Args:
        converter: has converted; it is closed with this object.
        execution: "auto" (on a GPU), "native" or "emulate".
        build: whether engines are built here, for the shapes that come.
        strict: True makes a segment without an engine, and an engine that is not used, an error.
        shapes: shapes to build for at once; see `Converter.sample_input_fn`.
        jobs: engines at the same time, at most; see `Converter.build`.

    Attributes:
        signature: names, order, dtypes and shapes of inputs and outputs.
        builds: how often engines were built; each is told in polygraphy's log.

    Raises:
        ConversionError: calibration failed; or `strict`, and a segment got no engine.
        InvalidParameterError: `shapes` do not fit.
    """

    def __init__(
        self,
        converter: Converter,
        execution: str,
        *,
        build: bool,
        strict: bool,
        shapes: Mapping[str, Any],
        jobs: int | None = None,
    ) -> None:
        self._converter = converter
        self._jobs = jobs
        self._execution = execution
        self._strict = strict
        self.signature = next(iter(converter.signatures.values()))
        self.builds = 0
        self._seen: set[Shapes] = set()
        self._ranges: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self._dynamic = converter.params.is_dynamic_op  # else convert() has built already
        self._build = build and self._dynamic
        input_fn = converter.sample_input_fn(shapes) if shapes else None  # which refuses wrong ones in any case
        if self._build and (shapes or not unknown_dimensions(self.signature)):
            self._build_engines(input_fn, _told(shapes))
            for name, given in check_shapes(shapes).items():  # all of one rank, as the line before has found out
                columns = list(zip(*given, strict=True))
                self._ranges[name] = tuple(map(min, columns)), tuple(map(max, columns))
        elif execution == "emulate":
            converter.calibrate()
        self._function = converter.function(execution)
        self._cold = True
        if not self._build or not self.builds:
            self._tell_conversion()

    def prepare(self, inputs: Mapping[str, Any]) -> None:
        """Makes everything ready that the time of a run is not to include.

        Builds engines for the shapes of these inputs, if engines are built at all and none was built for them, and
        runs a new function once: its sessions are made with the first run.

        Raises:
            InputError: the inputs do not fit the signature.
            ConversionError: the model fails on these inputs; or `strict`, and a segment got no engine.
        """
        shapes = _shapes_of(inputs)
        new = self._build and shapes not in self._seen and not self._covers(shapes)
        if new and unknown_dimensions(self.signature):
            self._build_engines(lambda: [dict(inputs)], ", ".join(f"{n} {list(s)}" for n, s in shapes))
            self._seen.add(shapes)
            self._function.close()
            self._function = self._converter.function(self._execution)
            self._cold = True
        if self._cold:
            self._function.warmup(samples=[dict(inputs)])
            self._cold = False

    def run(self, inputs: Any) -> dict[str, Any]:
        """Public output name -> array, for arrays by public input name.

        Raises:
            InputError: the inputs do not fit the signature.
            ConversionError: the model fails on them; or `strict`, and an engine was not used.
        """
        outputs = self._function.run(inputs)
        if self._strict and self._execution == "auto":
            for reason in self._function.stats()["fallbacks"]:
                raise ConversionError(f"strict: an engine was not used: {reason}")
        return outputs

    def stats(self) -> dict[str, Any]:
        """Counters of the function that runs now; see `ConvertedFunction.stats`."""
        return self._function.stats()

    def close(self) -> None:
        """Frees engines, sessions, TensorRT's process and the temporary folder; harmless when repeated."""
        try:
            self._function.close()
        finally:
            self._converter.close()

    def __enter__(self) -> InMemoryModel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _covers(self, shapes: Shapes) -> bool:
        """True when these shapes lie within those that engines were asked for at first."""
        return bool(self._ranges) and all(
            len(low) == len(shape)
            and all(least <= size <= most for least, size, most in zip(low, shape, high, strict=True))
            for name, shape in shapes
            if name in self._ranges
            for low, high in [self._ranges[name]]
        )

    def _build_engines(self, input_fn: Any, told: str) -> None:
        start = time.perf_counter()
        self._converter.build(input_fn, jobs=self._jobs)
        self.builds += 1
        report = self._converter.report
        built = [engine for engine in report.engines if engine.built]
        inform(
            f"built {counted(len(built), 'engine')} for {told or 'the shapes of the model'} in "
            f"{time.perf_counter() - start:.1f} s (build {self.builds}, {report.built_coverage:.0%} of the nodes)"
        )
        for engine in report.engines:
            if not engine.built and self._strict:
                raise ConversionError(f"strict: there is no engine {engine.name}: {engine.reason}")
            if not engine.built:
                inform(f"{engine.name} runs natively: {engine.reason}")

    def _tell_conversion(self) -> None:
        report = self._converter.report
        inform(f"converted: {counted(len(report.engines), 'segment')}, {report.coverage:.0%} of the nodes")


def _shapes_of(inputs: Mapping[str, Any]) -> Shapes:
    return tuple((name, tuple(int(size) for size in value.shape)) for name, value in sorted(inputs.items()))


def _told(shapes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in shapes.items())
