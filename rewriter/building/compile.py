"""One segment to one engine, and, when that fails, to the nodes that are to blame."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from onnx import NodeProto

from passes.extract import Extractor
from passes.segments import SegmentModel
from passes.support import Verdict
from rewriter.backends.base import Backend, BuildFailure, BuildOptions, BuiltEngine, Profile, Progress
from rewriter.backends.blame import nodes_named
from rewriter.backends.prefilter import label
from rewriter.temporary import TemporaryFolder

_LOG = logging.getLogger(__name__)

#: Kinds of failure that say something about the nodes; the others say something about memory, profiles or the user.
NODE_FAILURES = ("unsupported", "crash")


def compile_segment(
    backend: Backend,
    segment: SegmentModel,
    profiles: tuple[Profile, ...],
    options: BuildOptions,
    output: Path,
    progress: Progress | None = None,
) -> BuiltEngine | BuildFailure:
    """Builds the engine of a segment.

    Args:
        backend: where TensorRT runs.
        segment: the segment; its model is built as it is.
        profiles: shape ranges of the inputs; () or a profile that leaves inputs out when those are static.
        options: what else reaches the builder.
        output: the engine's file; written only when the build succeeds. Its folder must exist.
        progress: told of every step; returning False cancels.

    Returns:
        The engine, or the failure as a value; "profile" when a range is not minimum <= optimum <= maximum or misses
        a dynamic input.

    Raises:
        InvalidParameterError: a target or optimization level that TensorRT does not know.
        BackendError, MissingDependencyError: TensorRT cannot be run, or a file cannot be read or written.
    """
    for number, profile in enumerate(profiles):
        problem = _profile_problem(segment, profile)
        if problem:
            return BuildFailure("profile", f"profile {number} of {segment.segment.name}: {problem}")
    outcome = backend.build(segment.model, profiles, options, output, progress)
    if isinstance(outcome, BuildFailure):
        _LOG.debug("%s: no engine (%s): %s", segment.segment.name, outcome.kind, outcome.reason)
    else:
        _LOG.debug("%s: %d bytes in %.1f s", segment.segment.name, outcome.size, outcome.seconds)
    return outcome


def blame(
    backend: Backend,
    segment: SegmentModel,
    profiles: tuple[Profile, ...],
    options: BuildOptions,
    failure: BuildFailure,
    scratch_dir: Path,
) -> tuple[Verdict, ...]:
    """The nodes that a failed build is to be blamed on, as denials of rule "build" (or "crash").

    Rules:
        1. A failure that is no fault of a node (workspace, memory, profile, cancelled) denies nothing.
        2. Nodes that TensorRT names in its log are denied, and the one node of a segment of one.
        3. Else the shortest prefix of the topological order whose dry build fails ends in the guilty node. A prefix
           has the segment's own inputs, so the segment's profiles fit it. At most about 2 + log2(nodes) builds.
        4. If the failure comes and goes, or changes its kind on the way, the whole segment is denied, jointly.

    Args:
        backend: where TensorRT runs.
        segment: the segment that failed.
        profiles: what it was built with.
        options: what it was built with.
        failure: what came of it.
        scratch_dir: an existing folder for the engines of dry builds, which are removed.

    Raises:
        BackendError, MissingDependencyError: as for `compile_segment`.
    """
    if failure.kind not in NODE_FAILURES:
        return ()
    nodes = list(segment.model.proto.graph.node)
    named = nodes_named(failure.log, nodes) if failure.kind == "unsupported" else ()
    if named or len(nodes) == 1:
        return tuple(_denial(node, failure) for node in nodes if node.name in named or len(nodes) == 1)
    with TemporaryFolder("blame-", scratch_dir) as folder:
        search = _PrefixSearch(backend, segment, profiles, options, folder / "dry.engine")
        found = search.run(failure)
    if found is None:
        words = f"TensorRT cannot build it jointly with {len(nodes) - 1} other nodes: {failure.reason}"
        return tuple(Verdict(n.name, label(n), False, _rule(failure), words) for n in nodes)
    return tuple(_denial(node, found[1]) for node in nodes if node.name in found[0])


class _PrefixSearch:
    """Binary search for the shortest prefix of a segment that cannot be built."""

    def __init__(
        self,
        backend: Backend,
        segment: SegmentModel,
        profiles: tuple[Profile, ...],
        options: BuildOptions,
        output: Path,
    ) -> None:
        self._backend = backend
        self._extractor = Extractor(segment.model)
        self._profiles = profiles
        self._options = options
        self._output = output
        self._units = _units(self._extractor.index(()).nodes)

    def run(self, failure: BuildFailure) -> tuple[frozenset[str], BuildFailure] | None:
        """(guilty nodes, failure of the shortest failing prefix); None when the search finds no firm ground."""
        passes, broken = 0, len(self._units)
        budget = 2 + math.ceil(math.log2(max(broken, 1) + 1))
        found = None
        while broken - passes > 1:
            middle = (passes + broken) // 2
            outcome = self._dry_build(middle)
            budget -= 1
            if isinstance(outcome, BuiltEngine):
                passes = middle
            elif outcome.kind in NODE_FAILURES and budget > 0:
                broken, found = middle, outcome
            else:
                return None
        if found is None:  # only the whole is known to fail: make sure that it still does
            outcome = self._dry_build(broken)
            if isinstance(outcome, BuiltEngine) or outcome.kind not in NODE_FAILURES:
                return None
            found = failure
        return frozenset(self._units[broken - 1]), found

    def _dry_build(self, units: int) -> BuiltEngine | BuildFailure:
        names = [name for unit in self._units[:units] for name in unit]
        model = self._extractor.extract_nodes((), names, "dry", hashed=False).model
        inputs = {value.name for value in model.proto.graph.input}
        profiles = tuple({n: p for n, p in profile.items() if n in inputs} for profile in self._profiles)
        outcome = self._backend.build(model, profiles, self._options, self._output)
        self._output.unlink(missing_ok=True)
        return outcome


def _units(nodes: Sequence[NodeProto]) -> list[list[str]]:
    """Node names in runs that no cut may part: TensorRT cannot put out what a QuantizeLinear makes of FP8 or INT4."""
    units: list[list[str]] = []
    joined = False
    for node in nodes:
        if joined:
            units[-1].append(node.name)
        else:
            units.append([node.name])
        joined = node.op_type == "QuantizeLinear"
    return units


def _profile_problem(segment: SegmentModel, profile: Profile) -> str:
    """What is wrong with a profile, "" when nothing is; TensorRT itself tells it in its log only."""
    for name, wanted in profile.items():
        ordered = [wanted.minimum, wanted.optimum, wanted.maximum]
        text = "/".join(str(list(dims)) for dims in ordered)
        if len({len(dims) for dims in ordered}) != 1:
            return f"the ranges of {name!r} differ in length: {text}"
        if any(not low <= best <= high for low, best, high in zip(*ordered, strict=True)):
            return f"the range of {name!r} is not minimum <= optimum <= maximum: {text}"
        if not wanted.is_values and any(size < 0 for size in wanted.minimum):
            return f"the range of {name!r} has a negative size: {text}"
    missing = [spec.name for spec in segment.inputs if not spec.is_static and spec.tensor not in profile]
    return f"the dynamic inputs {', '.join(missing)} have no range" if missing else ""


def _denial(node: NodeProto, failure: BuildFailure) -> Verdict:
    return Verdict(node.name, label(node), False, _rule(failure), f"TensorRT cannot build it: {failure.reason}")


def _rule(failure: BuildFailure) -> str:
    return "crash" if failure.kind == "crash" else "build"
