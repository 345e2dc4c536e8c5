"""The single road: a callee is run, frozen, exported, named and compared with what TensorFlow computed."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from passes.scatter_reductions import settle_scatters
from rewriter.errors import ExportError
from rewriter.frontend.callee import Callee
from rewriter.frontend.freeze import Frozen, freeze
from rewriter.frontend.grappler import GrapplerOptions
from rewriter.frontend.islands.road import Exported, Wishes, export_parts
from rewriter.frontend.large_weights import attached
from rewriter.frontend.naming import publish, set_types
from rewriter.frontend.noise import quiet
from rewriter.frontend.onnx_types import onnx_dtype
from rewriter.frontend.samples import Run, first_accepted, given_runs, second_accepted
from rewriter.frontend.short_names import shorten
from rewriter.frontend.suspects import suspects
from rewriter.frontend.symbols import Dimension, dimension_symbols, other_sizes, output_symbols, witnesses
from rewriter.frontend.verify import QUANTISED_TOLERANCE, REDUCED_TOLERANCE, TOLERANCE, verify
from rewriter.source import Signature, SourceModel


@dataclasses.dataclass(frozen=True)
class Options:
    """How the road is taken.

    Attributes:
        samples: the user's sample inputs; None for made-up ones.
        verify: False skips the comparison with TensorFlow (the samples are still made and run).
        tolerance: largest relative difference; None for 1e-4, 1e-2 for graphs with float16 or bfloat16, 3e-2 for
            graphs that emulate quantisation.
        grappler: what TensorFlow's own graph optimiser does; None for the default.
        islands: False refuses what ONNX has no word for; True leaves it in TensorFlow.
        keep_in_tensorflow: TensorFlow operators that stay there in any case.
        folder: where the SavedModels of what stays go, each model's in a new folder of its own, which the caller owns;
            None for a temporary folder, which goes when this process ends.
    """

    samples: Sequence[Any] | None = None
    verify: bool = True
    tolerance: float | None = None
    grappler: GrapplerOptions | None = None
    islands: bool = True
    keep_in_tensorflow: tuple[str, ...] = ()
    folder: Path | None = None


class Clock:
    """Collects seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time of the block to `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def convert(callee: Callee, options: Options, clock: Clock) -> SourceModel:
    """Converts a callee to ONNX; see `load_source` for errors. A very large one is let go as soon as it is frozen."""
    with quiet():
        with clock.stage("reference"):
            runs, symbols = _reference(callee, options.samples)
            seen = witnesses(callee, runs, symbols)
        with clock.stage("freeze"):
            frozen = freeze(callee, grappler=options.grappler)
            if frozen.weights is not None:
                callee.let_go()
                gc.collect()  # traced functions are cycles, and the collector is off meanwhile
    tolerance = _tolerance(options, frozen)
    with quiet(), clock.stage("export"):
        wishes = Wishes(options.islands, options.keep_in_tensorflow, tolerance, options.folder)
        exported = export_parts(frozen, callee, seen, symbols, wishes)
    with exported.kept_if_good():
        with quiet(), clock.stage("export"):
            signature = _sign(exported, callee, frozen, seen, symbols)
            shorten(exported.proto)
            model = settle_scatters(attached(exported.proto, frozen.weights))
        verification = None
        if options.verify:
            with clock.stage("verify"):
                verification = verify(model, signature, runs, tolerance, callee.origin, suspects(frozen))
        return SourceModel(
            model,
            signature,
            callee.origin,
            verification,
            tuple(run.inputs for run in runs),
            dict(clock.seconds),
            (*callee.notes, *_precision_notes(frozen), *exported.notes),
        )


def _precision_notes(frozen: Frozen) -> tuple[str, ...]:
    """What becomes of bfloat16, which the export has no use for."""
    if not frozen.bfloat16:
        return ()
    return (
        "the model computes in bfloat16: its export, its native run and its inputs and outputs are float32; "
        "precision_mode='BF16' gives engines the model's own precision",
    )


def _tolerance(options: Options, frozen: Frozen) -> float:
    """The user's, or what fits the graph."""
    if options.tolerance is not None:
        return options.tolerance
    if frozen.quantised:
        return QUANTISED_TOLERANCE
    return REDUCED_TOLERANCE if frozen.reduced else TOLERANCE


def _reference(callee: Callee, given: Sequence[Any] | None) -> tuple[tuple[Run, ...], dict[Dimension, str]]:
    """What TensorFlow computes, before anything touches the model, and names for the unknown dimensions.

    Made-up samples: one of normal values, then one of values in [0, 1) and other sizes where sizes are unknown.
    """
    if given is not None:
        runs = given_runs(callee, given)
        return runs, dimension_symbols(callee, runs[0])
    first, plan = first_accepted(callee)
    symbols = dimension_symbols(callee, first)
    if not callee.inputs:
        return (first,), symbols
    second = second_accepted(callee, plan, other_sizes(symbols, first))
    return ((first, second) if second else (first,)), symbols


def _sign(
    exported: Exported, callee: Callee, frozen: Frozen, runs: Sequence[Run], symbols: Mapping[tuple[str, int], str]
) -> Signature:
    """Public names, dtypes and shapes, on the proto and as a Signature."""
    proto = exported.proto
    _, tensors = publish(proto, frozen.inputs, frozen.outputs, [a.name for a in callee.inputs], frozen.output_names)
    outputs = []
    for name, tensor, dtype, shape in zip(
        frozen.output_names, tensors, frozen.output_dtypes, frozen.output_shapes, strict=True
    ):
        rank = _rank(name, callee, runs) if shape is None else len(shape)
        seen = output_symbols(runs, symbols, name, rank)
        known = tuple(d if d is not None else s for d, s in zip(shape or (None,) * rank, seen, strict=True))
        outputs.append((name, tensor, onnx_dtype(dtype), known))
    exported.describe(symbols)
    signature = set_types(proto, callee.inputs, symbols, outputs)
    return dataclasses.replace(signature, name=callee.name)


def _rank(name: str, callee: Callee, runs: Sequence[Run]) -> int:
    """The rank of an output of which TensorFlow knows none; ONNX wants one, and every sample shows it.

    Raises:
        ExportError: samples show several.
    """
    ranks = sorted({run.outputs[name].ndim for run in runs})
    if len(ranks) > 1:
        told = " and ".join(map(str, ranks))
        raise ExportError(
            f"the output {name!r} of {callee.origin} has {told} dimensions, as the inputs are, and an output of an "
            "ONNX model has one rank: reshape it in the model to one rank, or convert a signature without it"
        )
    return ranks[0]
