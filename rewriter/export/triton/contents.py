"""What lies in a version's folder, for each flavour; `rewriter.export.triton.plans` has that of tensorrt_plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from passes import model as models
from passes.island_node import island_nodes
from rewriter.artifact import Artifact, EngineEntry, load_artifact
from rewriter.artifact import manifest as manifests
from rewriter.artifact.islands import link_or_copy
from rewriter.artifact.manifest_json import manifest_from_json
from rewriter.artifact.reading import read_manifest
from rewriter.backends import tensorrt, tensorrt_rtx
from rewriter.errors import InvalidParameterError
from rewriter.source import Signature

#: Folder of the artifact in a version of the python flavour.
ARTIFACT_FOLDER = "artifact"

_MODEL_PY = '''"""Triton's python backend runs the artifact beside this file with trt-rewriter."""

from rewriter.export.triton.serving import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclasses.dataclass(frozen=True)
class Content:
    """A version of one flavour.

    Attributes:
        fill: writes it into an empty folder.
        signature: inputs and outputs by the names that the flavour has for them; `tensor` is as in the artifact.
        engines: the engines that limit its batches.
        plans: compute capability -> file name of the plan; the tensorrt_plan flavour only.
        notes: what the user should know.
    """

    fill: Callable[[Path], None]
    signature: Signature
    engines: tuple[EngineEntry, ...] = ()
    plans: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def python_content(artifact: Artifact) -> Content:
    """`model.py` and the whole artifact."""

    def fill(folder: Path) -> None:
        _copy_artifact(artifact.path, folder / ARTIFACT_FOLDER)
        (folder / "model.py").write_text(_MODEL_PY, "utf-8")

    return Content(fill, artifact.signature, artifact.engines, notes=tuple(_needs(artifact)))


def _needs(artifact: Artifact) -> Iterator[str]:
    """What the server must have installed."""
    extras = {flavour.name: flavour.extra for flavour in (tensorrt.FLAVOUR, tensorrt_rtx.FLAVOUR)}
    engines = list(dict.fromkeys((entry.backend, entry.version) for entry in artifact.engines if entry.usable))
    names = ",".join(dict.fromkeys(["gpu", *(extras[backend] for backend, _ in engines if backend in extras)]))
    yield (
        "the python that Triton starts, the first python3 on its PATH, needs this package: pip install "
        f"'trt-rewriter[{names}]', or 'trt-rewriter[cpu]' where there is no GPU"
    )
    if engines:
        told = " and ".join(f"{backend} {version}" for backend, version in engines)
        yield f"engines run with the version that built them, here {told}; other servers compute natively"
    islands = _islands(artifact)
    if islands:
        yield (
            f"{', '.join(islands)}: computed by TensorFlow, so the python that Triton starts needs tensorflow as well: "
            "pip install 'trt-rewriter[tf]'"
        )


def onnx_content(artifact: Artifact) -> Content:
    """`model.onnx`, with its weights beside it: every segment is there as ordinary ONNX.

    Raises:
        InvalidParameterError: a part of the model stays in TensorFlow.
    """
    islands = _islands(artifact)
    if islands:
        raise InvalidParameterError(
            f"{artifact.path} has parts that stay in TensorFlow ({', '.join(islands)}), which ONNX Runtime cannot "
            "run: use flavour='python'"
        )

    def fill(folder: Path) -> None:
        models.save(artifact.model, folder / "model.onnx")

    notes: tuple[str, ...] = ()
    if artifact.engines:
        notes = ("the onnxruntime flavour takes no engine of the artifact with it: all segments run natively",)
    return Content(fill, _by_tensor(artifact.signature), notes=notes)


def _islands(artifact: Artifact) -> list[str]:
    """The parts that stay in TensorFlow, at most three of them by name."""
    return [node.name or node.op_type for node in island_nodes(artifact.model.proto)][:3]


def _by_tensor(signature: Signature) -> Signature:
    """The same with the names that the ONNX model has."""
    inputs, outputs = (
        tuple(dataclasses.replace(spec, name=spec.tensor) for spec in side)
        for side in (signature.inputs, signature.outputs)
    )
    return Signature(inputs, outputs, signature.name)


def _copy_artifact(source: Path, target: Path) -> None:
    """A copy with the files that the manifest lists; hard links where the disk gives them, for nobody changes them.

    Raises:
        ArtifactError: the artifact was changed meanwhile.
    """
    content = manifest_from_json(read_manifest(source), str(source))
    for name in (*content.files, manifests.MANIFEST_FILE):
        if (source / name).is_file():  # a missing engine is no failure: its segment runs natively
            link_or_copy(source / name, target / name)
    load_artifact(target, check_hashes=False)
