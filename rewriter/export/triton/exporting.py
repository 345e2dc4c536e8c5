"""`export_triton`: an artifact becomes a version of a model in a repository of Triton."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rewriter.artifact import Artifact, load_artifact
from rewriter.errors import InvalidParameterError
from rewriter.export.triton.checking import parsed_config
from rewriter.export.triton.config import BACKENDS, ConfigOptions, config_text, shape_notes
from rewriter.export.triton.contents import Content, onnx_content, python_content
from rewriter.export.triton.kserve import service_text
from rewriter.export.triton.plans import plan_content
from rewriter.export.triton.repository import (
    CONFIG_FILE,
    OLD_CONFIG_FILE,
    add_version,
    check_repository,
    checked_name,
    service_file,
    write_service,
)
from rewriter.export.triton.shapes import find_batching, find_warmups

_log = logging.getLogger(__name__)
_CONTENTS: dict[str, Callable[[Artifact], Content]] = {"python": python_content, "onnxruntime": onnx_content}


@dataclasses.dataclass(frozen=True)
class Exported:
    """One version of a model in a repository.

    Attributes:
        repository: the folder that the server is given, resolved.
        name: the model's.
        version: its number.
        flavour: what runs it.
        max_batch_size: the largest batch; 0 where Triton does not batch.
        files: all files of this version, of its settings and for KServe, relative to the repository, sorted.
        notes: what is to be known, a sentence each.
    """

    repository: Path
    name: str
    version: int
    flavour: str
    max_batch_size: int
    files: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """The folder of this version."""
        return self.repository / self.name / str(self.version)

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `trt-rewriter export triton --json` prints it."""
        plain = {**dataclasses.asdict(self), "files": list(self.files), "notes": list(self.notes)}
        return {**plain, "repository": str(self.repository), "folder": str(self.folder)}


def export_triton(
    artifact: str | Path,
    repository: str | Path,
    *,
    name: str | None = None,
    flavour: str = "python",
    signature: str | None = None,
    instances: int = 1,
    kind: str = "auto",
    gpus: Sequence[int] = (),
    max_queue_delay_us: int = 1000,
    max_batch_size: int | None = None,
    engine_version: str | None = None,
    threads: int | None = None,
    strict: bool = False,
    warmup: bool = True,
    storage_uri: str | None = None,
    image: str | None = None,
    check: bool = False,
) -> Exported:
    """Writes an artifact into a model repository, as the next version of a model.

    Args:
        artifact: the directory that `Converter.save` wrote.
        repository: the folder that the server is given; made where it is missing.
        name: the model's name; default: that of the artifact's folder.
        flavour: "python" (runs wherever this package does, engines included), "onnxruntime" (ONNX Runtime's backend,
            no engine) or "tensorrt_plan" (TensorRT's backend, when the whole graph is one engine).
        signature: which of several; default: the first.
        instances: copies of the model for each device.
        kind: "auto" (GPUs where there are some), "cpu", "gpu" or "model".
        gpus: numbers of the GPUs, with kind "gpu"; () for all.
        max_queue_delay_us: how long a request may wait for others to make a batch with, in microseconds.
        max_batch_size: the largest batch; default: what the engines' profiles allow, 8 without any, 0 where inputs
            and outputs do not share a batch dimension.
        engine_version: TensorRT's version in the server, where the artifact has engines of several (tensorrt_plan
            flavour); default: the newest. The python flavour takes all with it, and each server chooses.
        threads: of ONNX Runtime in each copy (python flavour), as in `rewriter.load`; default: all cores, shared by the
            copies of a server without a GPU.
        strict: True: an engine that is not used is an error (python flavour), as in `rewriter.load`.
        warmup: True has the server run the optimum of every profile before the model is ready.
        storage_uri: where KServe finds the repository; default: a placeholder.
        image: the image of the server for KServe; default: the cluster's.
        check: True has Triton's own definition of its settings, which tritonclient brings, parse them before anything
            is written.

    Raises:
        ArtifactError: the artifact is missing or damaged, or the repository cannot be written.
        InvalidParameterError: an option is not allowed, or Triton or the flavour cannot express the model; the message
            names the tensor or the part.
        MissingDependencyError, BackendError: `check`, and tritonclient is not installed, or refuses the settings.
    """
    _check_flavour(flavour, strict=strict, threads=threads, engine_version=engine_version)
    loaded = load_artifact(artifact, signature=signature)
    name = checked_name(name, loaded.path)
    root = check_repository(repository, name)
    content = plan_content(loaded, engine_version) if flavour == "tensorrt_plan" else _CONTENTS[flavour](loaded)
    batching = find_batching(content.signature, content.engines, max_batch_size)
    warmups, without = find_warmups(content.signature, content.engines, batching) if warmup else ([], "")
    options = ConfigOptions(
        instances=instances,
        kind=kind,
        gpus=tuple(gpus),
        max_queue_delay_us=max_queue_delay_us,
        parameters=_parameters(loaded, strict=strict, warmup=warmup, threads=threads) if flavour == "python" else {},
        plans=content.plans,
        profiles=max((len(entry.profiles) for entry in content.engines), default=0) if content.plans else 0,
    )
    text = config_text(name, flavour, content.signature, batching, warmups, options)
    if check:
        parsed_config(text)
    notes = [*content.notes, *shape_notes(content.signature, batching)]
    notes += [note for note in (batching.reason, without) if note]
    notes += [f"engine {entry.op} cannot be used: {entry.problem}" for entry in loaded.engines if not entry.usable]
    version = add_version(root, name, text, content.fill)
    needs = {"gpu": kind != "cpu", "package": flavour == "python"}
    write_service(root, name, service_text(name, **needs, storage_uri=storage_uri, image=image))
    folder = root / name / str(version)
    files = [path.relative_to(root).as_posix() for path in folder.rglob("*") if path.is_file()]
    if (root / name / OLD_CONFIG_FILE).is_file() and version > 1:
        notes.append(f"the settings before this version are in {name}/{OLD_CONFIG_FILE}")
    _log.info("exported %s as version %d of %s in %s (%s)", loaded.path, version, name, root, flavour)
    return Exported(
        repository=root,
        name=name,
        version=version,
        flavour=flavour,
        max_batch_size=batching.maximum,
        files=tuple(sorted([*files, f"{name}/{CONFIG_FILE}", service_file(name)])),
        notes=tuple(notes),
    )


def _check_flavour(flavour: str, *, strict: bool, threads: int | None, engine_version: str | None) -> None:
    """Refuses an unknown flavour, and options that are for another one.

    Raises:
        InvalidParameterError: it is such a one.
    """
    if flavour not in BACKENDS:
        raise InvalidParameterError(f"flavour must be one of {', '.join(BACKENDS)}, not {flavour!r}")
    if strict and flavour != "python":
        raise InvalidParameterError(f"strict is for flavour='python', not {flavour!r}: other flavours know no fallback")
    if threads is not None and flavour != "python":
        raise InvalidParameterError(f"threads is for flavour='python', not {flavour!r}: leave it out")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise InvalidParameterError(f"threads must be a number from 1, not {threads!r}")
    if engine_version is not None and flavour != "tensorrt_plan":
        raise InvalidParameterError(f"engine_version is for flavour='tensorrt_plan', not {flavour!r}: leave it out")


def _parameters(artifact: Artifact, *, strict: bool, warmup: bool, threads: int | None) -> dict[str, str]:
    """What the python flavour reads from its settings (see `rewriter.export.triton.serving`)."""
    return {
        "signature": artifact.signature.name,
        "strict": str(strict).lower(),
        "warmup": str(warmup).lower(),
        **({} if threads is None else {"threads": str(threads)}),
    }
