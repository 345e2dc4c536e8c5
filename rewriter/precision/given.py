"""Ranges of an earlier calibration as users give them: one table for all signatures, or one for each."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

from passes.precision.ranges import RangeTable
from rewriter.artifact import manifest as manifests
from rewriter.artifact.manifest_json import manifest_from_json
from rewriter.errors import ArtifactError, InvalidParameterError
from rewriter.precision.calibration import read_ranges
from rewriter.runtime.inputs import first_line

#: What users may give for one signature, or for all of them.
Ranges = RangeTable | str | os.PathLike[str]
GivenCalibration = Ranges | Mapping[str, Ranges] | None


@dataclasses.dataclass(frozen=True)
class Found:
    """What was given for one signature.

    Attributes:
        table: its ranges; None where it has to be calibrated still.
        notes: what is doubtful about them, one sentence each.
    """

    table: RangeTable | None = None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ArtifactRanges:
    """The tables of an artifact, each for the signature of its name.

    Attributes:
        folder: the artifact, for messages.
        tables: signature key -> table, the default one first; an empty one where nothing was calibrated.
    """

    folder: str
    tables: Mapping[str, RangeTable]


@dataclasses.dataclass(frozen=True)
class RangesBySignature:
    """What was given for single signatures, by their keys; the others have to be calibrated."""

    given: Mapping[str, RangeTable | ArtifactRanges]


#: A table alone serves every signature.
GivenRanges = RangeTable | ArtifactRanges | RangesBySignature


def serves(given: GivenRanges | None, key: str | None) -> bool:
    """True when ranges are given for this signature; for None: for every one."""
    return key in given.given if isinstance(given, RangesBySignature) else given is not None


def find_ranges(given: GivenRanges | None, key: str, *, alone: bool) -> Found:
    """The ranges that were given for a signature; rule 2 of `check_calibration`.

    Args:
        given: what was given.
        key: the signature.
        alone: whether no other one is converted.

    Raises:
        InvalidParameterError: several are converted, and the artifact does not know this one.
    """
    if isinstance(given, RangesBySignature):
        return find_ranges(given.given.get(key), key, alone=True)
    if not isinstance(given, ArtifactRanges):
        return Found(given)
    if key in given.tables:
        return Found(given.tables[key])
    known = ", ".join(map(repr, given.tables))
    if not alone:
        raise InvalidParameterError(
            f"calibration: {given.folder} has no signature {key!r}, only {known}: give a dict, signature key -> ranges"
        )
    first = next(iter(given.tables))
    note = f"calibration: {given.folder} has no signature {key!r}, only {known}; the ranges used are those of {first!r}"
    return Found(given.tables[first], () if len(given.tables) == 1 else (note,))


def check_calibration(value: object) -> GivenRanges | None:
    """Ranges of an earlier calibration; None without.

    1. A `RangeTable` and a `calibration.json` serve every signature, whichever it was made for.
    2. An artifact gives each signature the table of its name. A signature that is converted alone and that the
       artifact does not know gets the first one's, for sources other than SavedModels name theirs as they like.
    3. A mapping gives these for single signatures, by their keys.

    Raises:
        InvalidParameterError: it is none of these.
        ArtifactError: a file is damaged, or is not what the artifact's manifest says.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        return _one(value, "calibration")
    if not value or not all(isinstance(key, str) for key in value):
        raise InvalidParameterError(
            "calibration must be ranges, or a dict, signature key -> ranges, with at least one entry, not "
            f"{sorted(map(repr, value))}"
        )
    return RangesBySignature({key: _one(item, f"calibration[{key!r}]") for key, item in value.items()})


def _one(value: object, name: str) -> RangeTable | ArtifactRanges:
    if isinstance(value, RangeTable):
        return value
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise InvalidParameterError(
            f"{name} must be a RangeTable, or the path of a {manifests.RANGES_FILE} or an artifact, not "
            f"{type(value).__name__}"
        )
    path = Path(text)
    return _artifact_ranges(path) if path.is_dir() else read_ranges(path)


def _artifact_ranges(folder: Path) -> ArtifactRanges:
    """The ranges of an artifact, if they are those that were saved with it.

    Raises:
        ArtifactError: it is no artifact, holds no ranges, or they were changed.
    """
    try:
        data = json.loads((folder / manifests.MANIFEST_FILE).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"calibration: {folder} is no artifact ({manifests.MANIFEST_FILE}: {first_line(error)}): give an artifact "
            f"or the path of a {manifests.RANGES_FILE}"
        ) from error
    content = manifest_from_json(data, str(folder))
    if not any(part.ranges in content.files for part in content.parts):
        raise ArtifactError(f"calibration: {folder} holds no {manifests.RANGES_FILE}: nothing was calibrated for it")
    tables = {}
    for part in content.parts:
        record = content.files.get(part.ranges)
        tables[part.signature.name] = RangeTable() if record is None else _saved_ranges(folder, part.ranges, record)
    return ArtifactRanges(str(folder), tables)


def _saved_ranges(folder: Path, name: str, record: manifests.FileRecord) -> RangeTable:
    path = folder / name
    table = read_ranges(path)
    if manifests.hash_file(path) != record:
        raise ArtifactError(
            f"{folder}: {name} is not the file that was saved (its sha256 differs from {manifests.MANIFEST_FILE}): "
            "save the artifact again, or give the path of the file itself to use it as it is"
        )
    return table
