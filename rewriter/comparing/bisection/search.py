"""`bisect`: which of the cases a pair is, and what it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewriter.artifact import Artifact, load_artifact
from rewriter.comparing.bisection.report import Bisection
from rewriter.comparing.bisection.sides import CHUNK_BYTES
from rewriter.comparing.bisection.subject import Subject, Tolerance
from rewriter.errors import InvalidParameterError
from rewriter.params import check_choice

if TYPE_CHECKING:
    from rewriter.comparing.bisection.engines import EngineRunner
    from rewriter.comparing.bisection.source import Source

REFERENCES = ("native", "source")
RESULTS = ("emulated", "native", "tensorrt")
_TOGETHER = "where the two together are beyond it, a stricter tolerance shows the larger part"


def bisect(
    artifact: str | Path | Artifact,
    samples: Iterable[Any],
    tolerance: Tolerance,
    *,
    reference: str = "native",
    result: str = "emulated",
    source: Source | None = None,
    engines: EngineRunner | None = None,
    most: int = CHUNK_BYTES,
) -> Bisection:
    """Finds the first segment, then the first node, whose result leaves the tolerance, and the option against it.

    1. Outputs first: where all of them are within their tolerances there is nothing to find.
    2. Of the values beyond the tolerance those count that reach such an output: what recovers on the way does no harm.
       The values at the boundaries of segments, and those of native nodes, are compared first, then those inside the
       segment that was found. Of these the topologically first one is the answer.
    3. The node that makes it is fed with the reference's values: either the difference is its own, or what goes into it
       brings it; then the node with the largest difference of its own is named, too.
    4. The option that excludes the node is tried where that can be measured, with more nodes where one is not enough.

    Values inside the bodies of If, Loop and Scan are not looked into: such a node counts as one.

    Args:
        artifact: the folder of an artifact, or one signature of it that was loaded.
        samples: inputs as a call takes them: dicts by public name, tuples in the order of the signature, or arrays.
        tolerance: largest max|result - reference| / max|reference| of an output over all samples; one number, or one
            by public name. Inner values are held against that of the outputs that are beyond theirs.
        reference: "native" or "source". From "source" to "emulated" or "tensorrt" the way from source to native is
            searched where that is beyond the tolerance already, else the way from native.
        result: "emulated", "native" (from "source") or "tensorrt" (needs a GPU with the artifact's engines).
        source: what "source" is: a `Reference` of `open_reference`, or the path of the model.
        engines: what runs engines for "tensorrt"; default: this machine's GPU.
        most: bytes of inner values that are looked at in one run, on each side.

    Raises:
        InvalidParameterError: an argument has a value that is not allowed, or "source" lacks `source`.
        InputError: a sample does not fit the signature.
        ArtifactError: the artifact cannot be read, or does not hold the recipe of its engines.
        ConversionError: a model cannot be run, or engines cannot be emulated, run or built.
        MissingDependencyError: a package that this needs is not installed.
    """
    check_choice("reference", reference, REFERENCES)
    check_choice("result", result, RESULTS)
    if reference == result:
        raise InvalidParameterError("there is nothing between 'native' and itself: give another reference or result")
    if reference == "source" and source is None:
        raise InvalidParameterError("reference='source' needs source=: the model that was converted")
    loaded = artifact if isinstance(artifact, Artifact) else load_artifact(artifact)
    subject = Subject.of(loaded, samples, tolerance, most)
    if source is not None and reference == "source":
        from rewriter.comparing.bisection.source import bisect_source

        found = bisect_source(subject, source)
        if result == "native" or found.outputs:
            return found
    found = _from_native(subject, result, engines)
    if reference == "source" and not found.outputs:
        return dataclasses.replace(found, notes=(*found.notes, f"the source and its native run are, too; {_TOGETHER}"))
    return found


def _from_native(subject: Subject, result: str, engines: EngineRunner | None) -> Bisection:
    if result == "emulated":
        from rewriter.comparing.bisection.emulated import bisect_emulated

        return bisect_emulated(subject)
    from rewriter.comparing.bisection.engines import bisect_engines

    if engines is not None:
        return bisect_engines(subject, engines)
    from rewriter.comparing.bisection.gpu import open_gpu_runner

    with open_gpu_runner(subject) as runner:
        return bisect_engines(subject, runner)
