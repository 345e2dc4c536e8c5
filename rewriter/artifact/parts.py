"""An artifact as values: what is written, and what is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from passes.model import Model
from passes.precision.ranges import RangeTable
from passes.precision.recipe import Recipe
from rewriter.artifact.manifest import EngineEntry
from rewriter.errors import ArtifactError
from rewriter.source import Signature


@dataclasses.dataclass(frozen=True)
class ArtifactPart:
    """One signature of an artifact that is to be written.

    Attributes:
        model: the spliced model.
        signature: what the user calls.
        params: conversion parameters (plain data).
        report: the conversion's report (plain data).
        engines: entries with the file that holds each engine now: it is hard-linked, or copied in chunks.
        ranges: what calibration found; None writes no `calibration.json`.
    """

    model: Model
    signature: Signature
    params: Mapping[str, Any]
    report: Mapping[str, Any]
    engines: Sequence[tuple[EngineEntry, Path]] = ()
    ranges: RangeTable | None = None


@dataclasses.dataclass(frozen=True)
class Artifact:
    """One signature of a loaded artifact.

    Attributes:
        path: its directory.
        model: the spliced model, weights memory mapped from `model.onnx.data`.
        signature: what the user calls.
        params: the conversion parameters, as JSON keeps them.
        engines: one entry an engine; those that cannot be used carry the reason in `problem`.
        report: the conversion's report.
        versions: distribution name -> version at conversion.
        created: UTC time of the conversion, ISO 8601.
        ranges: what calibration found; None where nothing was calibrated.
        signatures: names of all signatures of the artifact, the default one first.
    """

    path: Path
    model: Model
    signature: Signature
    params: Mapping[str, Any]
    engines: tuple[EngineEntry, ...]
    report: Mapping[str, Any]
    versions: Mapping[str, str]
    created: str
    ranges: RangeTable | None = None
    signatures: tuple[str, ...] = ()

    def recipe(self, purpose: str) -> Recipe:
        """The arithmetic of its engines.

        Args:
            purpose: what cannot be done without it, for the message: "emulated", "extended".

        Raises:
            ArtifactError: the artifact does not say, or not in words that this version knows.
        """
        data = self.params.get("recipe")
        problem = "it does not hold its recipe"
        try:
            if isinstance(data, Mapping):
                return Recipe.from_json(data)
        except ValueError as error:
            problem = str(error)
        raise ArtifactError(f"{self.path} cannot be {purpose}: {problem}: convert the model again")

    def engine_path(self, entry: EngineEntry) -> Path:
        """The file of one of `engines`."""
        return self.path / entry.file
