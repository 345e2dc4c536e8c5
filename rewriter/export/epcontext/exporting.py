"""An artifact as a model that ONNX Runtime's TensorRT providers load by themselves, without this package."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from onnx import ModelProto

from passes import model as models
from rewriter.artifact import Artifact, EngineEntry, load_artifact
from rewriter.artifact.manifest import FileRecord, hash_file, part_files, sync_directory
from rewriter.errors import ExportError
from rewriter.export.epcontext.choosing import choose_engines
from rewriter.export.epcontext.folder import DATA_FILE, MODEL_FILE, check_folder, checked_folder, output_errors
from rewriter.export.epcontext.graph import engine_ops, lies_in_bodies, with_contexts
from rewriter.export.epcontext.providers import (
    HEADER_BYTES,
    Context,
    Provider,
    compatibility_info,
    compatibility_key,
    find_provider,
)
from rewriter.installing import install, made_parents, sibling

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: where to, resolved.
        model: the model with the EPContext nodes.
        files: names of all files in `folder`, sorted.
        provider: the execution provider that can load it.
        engines: operator of an engine node -> the engine that its EPContext node names.
        notes: what the user should know, a line each: which engines were taken, and what nobody has tried.
    """

    folder: Path
    model: Path
    files: tuple[str, ...]
    provider: str
    engines: Mapping[str, EngineEntry]
    notes: tuple[str, ...] = ()


def export_epcontext(
    artifact: str | Path,
    folder: str | Path,
    *,
    flavour: str = "tensorrt_rtx",
    target: str | None = None,
    engine_version: str | None = None,
    signature: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Writes `model_ctx.onnx`: the artifact with one EPContext node for every engine node.

    Rules:
        1. The engines lie beside the model, as copies, under the names that the nodes have for them; large weights of
           native nodes in `model_ctx.onnx.data`. The model refers to nothing else.
        2. There is no native fallback any more: an engine that does not fit is the provider's error. ONNX Runtime
           refuses the model where the provider is missing, so it is a file of its own beside the artifact.
        3. Whatever goes wrong, `folder` is afterwards what it was before, and nothing is left beside it.

    Args:
        artifact: the directory that `Converter.save` wrote.
        folder: where to; missing parents are made.
        flavour: whose engines: "tensorrt_rtx" or "tensorrt". One file is for one provider.
        target: the compute capability to choose engines by, "SM89"; default: the engines with the most in common.
        engine_version: the TensorRT to choose engines by, "1.7.1.116"; default: the newest that all nodes have.
        signature: which one to export; default: the first.
        overwrite: True replaces an earlier export whose folder holds nothing else.

    Raises:
        InvalidParameterError: no such flavour or signature; `target` is no compute capability.
        ArtifactError: not an artifact, or a damaged one.
        ExportError: a part of the model cannot be exported (an engine node without a usable engine, a part that stays
            in TensorFlow), or the folder cannot be written; the message names it.
    """
    provider = find_provider(flavour)
    where = checked_folder(folder)
    check_folder(where, overwrite)
    source = load_artifact(artifact, signature=signature)
    try:
        choice = choose_engines(engine_ops(source.model), source.engines, flavour, target, engine_version)
    except ExportError as error:
        raise ExportError(f"{source.path}: {error}") from error
    contexts = {op: _context(provider, source, entry) for op, entry in choice.engines.items()}
    model = with_contexts(source.model, provider, contexts)
    with output_errors(where), made_parents(where.parent):
        scratch = sibling(where, "new")
        try:
            headers = {op: _place(source, entry, scratch / contexts[op].file) for op, entry in choice.engines.items()}
            if provider.compatibility:
                _write_compatibility(model.proto, provider, next(iter(headers.values())))
            models.save(model, scratch / MODEL_FILE, DATA_FILE)
            files = tuple(sorted(path.name for path in scratch.iterdir()))
            sync_directory(scratch)
            install(scratch, where)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    notes = (*choice.notes, *_notes(provider, source, choice.engines, headers))
    _log.info("exported %s for %s: %d engines", where, provider.name, len(contexts))
    return Exported(where, where / MODEL_FILE, files, provider.name, choice.engines, notes)


def _context(provider: Provider, source: Artifact, entry: EngineEntry) -> Context:
    """What the node of one engine says."""
    partition = f"{provider.name}_{entry.op}_{entry.key}"
    number = source.signatures.index(source.signature.name)
    return Context(partition, f"{partition}.engine", entry.version, entry.targets, part_files(number)[0])


def _place(source: Artifact, entry: EngineEntry, path: Path) -> str:
    """Copies an engine; returns its compatibility information.

    A copy, not a link: whoever uses the folder may write into its files, and the artifact's must stay as they are.
    """
    shutil.copyfile(source.engine_path(entry), path)
    if hash_file(path) != FileRecord(entry.size, entry.sha256):
        raise ExportError(f"{source.path}: {entry.file} has changed while it was copied: export it again")
    with path.open("rb") as file:
        return compatibility_info(file.read(HEADER_BYTES), f"{source.path}: {entry.file}")


def _write_compatibility(proto: ModelProto, provider: Provider, info: str) -> None:
    """Puts the compatibility information into the model's metadata, in place of what is there under its name."""
    key = compatibility_key(provider)
    kept = [entry for entry in proto.metadata_props if entry.key != key]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    proto.metadata_props.add(key=key, value=info)


def _notes(
    provider: Provider, source: Artifact, engines: Mapping[str, EngineEntry], headers: Mapping[str, str]
) -> list[str]:
    """What the user should know."""
    version = next(iter(engines.values())).version
    tried = (
        f"such exports were tried with its release {provider.tried}"
        if provider.tried
        else "no such export was tried with it: it was checked against the provider's source code only"
    )
    notes = [
        f"the engines run only in a {provider.name} that has {provider.flavour} {version}; {tried}",
        f"without {provider.name} ONNX Runtime refuses {MODEL_FILE}; the artifact's own model runs everywhere",
        "the exported model has no native fallback: shapes outside an engine's profile are an error of the provider, "
        "which a session survives only after session.disable_fallback()",
    ]
    named = [s for s in (*source.signature.inputs, *source.signature.outputs) if s.tensor != s.name]
    if named:
        told = ", ".join(f"{spec.tensor!r} for {spec.name!r}" for spec in named)
        notes.append(f"the model has other names than the signature: {told}")
    several = [op for op, entry in engines.items() if len(entry.profiles) > 1]
    if several:
        notes.append(
            f"{', '.join(several)}: several profiles, and a provider may use the first one only: build with one that "
            "holds all shapes"
        )
    unknown = [op for op, entry in engines.items() if not entry.targets]
    if unknown:
        notes.append(
            f"{', '.join(unknown)}: built for the GPU of the machine that built it, not known here, so the node has no "
            "hardware_architecture"
        )
    bodies = lies_in_bodies(source.model)
    if bodies:
        notes.append(f"{', '.join(bodies)}: in a body of control flow, where EPContext nodes are untried")
    if provider.compatibility and len(set(headers.values())) > 1:
        first = next(iter(headers))
        notes.append(f"the compatibility information of the model is that of {first}: it has room for one engine")
    return notes
