"""The manifest as JSON, written and read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from onnx import TensorProto

from passes.segments import TensorSpec
from rewriter.artifact.manifest import (
    FORMAT,
    MANIFEST_FILE,
    SCHEMA_VERSION,
    EngineEntry,
    FileRecord,
    Manifest,
    Part,
    entry_to_json,
    part_files,
    plain,
    profile_from_json,
)
from rewriter.errors import ArtifactError
from rewriter.source import Signature

_SHA256 = re.compile(r"[0-9a-f]{64}")


def manifest_to_json(manifest: Manifest) -> dict[str, Any]:
    """The JSON form of a manifest."""
    first, *others = manifest.parts
    more = [
        {**_part_to_json(part), "model": part.model, "report": part.report, "calibration": part.ranges}
        for part in others
    ]
    return {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "created": manifest.created,
        "versions": dict(manifest.versions),
        **_part_to_json(first),
        **({"more_signatures": more} if more else {}),
        "files": {name: dataclasses.asdict(record) for name, record in manifest.files.items()},
    }


def _part_to_json(part: Part) -> dict[str, Any]:
    return {
        "signature": _signature_to_json(part.signature),
        "params": plain(part.params, "params"),
        "engines": [entry_to_json(entry) for entry in part.engines],
    }


def _part_from_json(data: Mapping[str, Any], model: str, report: str, ranges: str) -> Part:
    return Part(
        signature=_signature_from_json(data["signature"]),
        params=dict(data["params"]),
        engines=tuple(_entry_from_json(item) for item in data["engines"]),
        model=model,
        report=report,
        ranges=ranges,
    )


def manifest_from_json(data: object, where: str) -> Manifest:
    """Reads a manifest.

    Args:
        data: the parsed JSON.
        where: the artifact, for messages.

    Raises:
        ArtifactError: not a manifest, of another schema, an unsafe path, or a field that is missing or of a wrong kind.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ArtifactError(f"{where} is not a trt-rewriter artifact: its {MANIFEST_FILE} is of another kind")
    schema = data.get("schema_version")
    if not isinstance(schema, int) or isinstance(schema, bool):
        raise ArtifactError(f"{where}: {MANIFEST_FILE} is damaged: schema_version is {schema!r}")
    if schema < SCHEMA_VERSION:
        raise ArtifactError(
            f"{where} has an older format (schema {schema}, this trt-rewriter reads {SCHEMA_VERSION}): convert the "
            "model again"
        )
    if schema > SCHEMA_VERSION:
        raise ArtifactError(
            f"{where} was written by a newer trt-rewriter (schema {schema}, this one reads {SCHEMA_VERSION}): "
            "upgrade trt-rewriter, or convert the model again"
        )
    try:
        manifest = Manifest(
            created=str(data["created"]),
            versions={str(name): str(version) for name, version in data["versions"].items()},
            parts=(
                _part_from_json(data, *part_files(0)),
                *(
                    _part_from_json(item, *(str(item[key]) for key in ("model", "report", "calibration")))
                    for item in data.get("more_signatures", ())
                ),
            ),
            files={name: _record_from_json(item) for name, item in data["files"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        detail = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise ArtifactError(f"{where}: {MANIFEST_FILE} is damaged: {detail}") from error
    for name in (
        *manifest.files,
        *(name for part in manifest.parts for name in (part.model, part.report, part.ranges)),
    ):
        check_relative(name, where)
    names = [part.signature.name for part in manifest.parts]
    if len(set(names)) < len(names):
        raise ArtifactError(f"{where}: {MANIFEST_FILE} is damaged: two signatures have one name")
    return manifest


def check_relative(name: str, where: str) -> None:
    """Refuses a path that is absolute, leaves the directory or is spelled unusually.

    Raises:
        ArtifactError: it does; the message names the path.
    """
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    unsafe = posix.is_absolute() or windows.is_absolute() or windows.drive or "\\" in name or "\0" in name
    if unsafe or ".." in posix.parts or str(posix) != name or name in ("", "."):
        raise ArtifactError(f"{where}: unsafe path {name!r} in {MANIFEST_FILE}: only plain relative paths are read")


def _signature_to_json(signature: Signature) -> dict[str, Any]:
    return {
        "name": signature.name,
        "inputs": [_spec_to_json(spec) for spec in signature.inputs],
        "outputs": [_spec_to_json(spec) for spec in signature.outputs],
    }


def _spec_to_json(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "dtype": TensorProto.DataType.Name(spec.dtype),
        "shape": None if spec.shape is None else list(spec.shape),
        "tensor": spec.tensor,
    }


def _signature_from_json(data: Mapping[str, Any]) -> Signature:
    inputs = tuple(_spec_from_json(item) for item in data["inputs"])
    outputs = tuple(_spec_from_json(item) for item in data["outputs"])
    return Signature(inputs, outputs, str(data["name"]))


def _spec_from_json(data: Mapping[str, Any]) -> TensorSpec:
    shape = data["shape"]
    if shape is not None:
        for dim in shape:
            if dim is not None and not isinstance(dim, (int, str)):
                raise ValueError(f"the shape of {data['name']!r} has the dimension {dim!r}")
        shape = tuple(shape)
    return TensorSpec(str(data["name"]), TensorProto.DataType.Value(data["dtype"]), shape, str(data["tensor"]))


def _entry_from_json(data: Mapping[str, Any]) -> EngineEntry:
    record = _record_from_json(data)
    entry = EngineEntry(
        op=str(data["op"]),
        key=str(data["key"]),
        size=record.size,
        sha256=record.sha256,
        backend=str(data["backend"]),
        version=str(data["version"]),
        targets=tuple(str(target) for target in data["targets"]),
        profiles=tuple(profile_from_json(profile) for profile in data["profiles"]),
        precision=str(data["precision"]),
        segment_hash=str(data["segment_hash"]),
    )
    if entry.file != data["file"]:
        raise ValueError(f"engine {entry.op!r} names the file {data['file']!r}, expected {entry.file!r}")
    return entry


def _record_from_json(data: Mapping[str, Any]) -> FileRecord:
    size, digest = data["size"], data["sha256"]
    if not isinstance(size, int) or size < 0 or not _SHA256.fullmatch(str(digest)):
        raise ValueError(f"size {size!r} with sha256 {digest!r}")
    return FileRecord(size, str(digest))
