"""What lies in a version's folder, for each flavour."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from passes import model as models
from passes.engine_node import read_attributes
from passes.graph.walk import iter_nodes
from passes.island_node import island_nodes
from passes.segments import ENGINE_DOMAIN
from rewriter.artifact import Artifact, EngineEntry, load_artifact
from rewriter.artifact import manifest as manifests
from rewriter.artifact.islands import link_or_copy
from rewriter.artifact.manifest_json import manifest_from_json
from rewriter.artifact.reading import read_manifest
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

    note = "the python that Triton starts must have trt-rewriter installed"
    return Content(fill, artifact.signature, artifact.engines, notes=(note,))


def onnx_content(artifact: Artifact) -> Content:
    """`model.onnx`, with its weights beside it: every segment is there as ordinary ONNX.

    Raises:
        InvalidParameterError: a part of the model stays in TensorFlow.
    """
    islands = [node.name or node.op_type for node in island_nodes(artifact.model.proto)]
    if islands:
        raise InvalidParameterError(
            f"{artifact.path} has parts that stay in TensorFlow ({', '.join(islands[:3])}), which ONNX Runtime cannot "
            "run: use flavour='python'"
        )

    def fill(folder: Path) -> None:
        models.save(artifact.model, folder / "model.onnx")

    notes: tuple[str, ...] = ()
    if artifact.engines:
        notes = ("the onnxruntime flavour takes no engine of the artifact with it: all segments run natively",)
    return Content(fill, _by_tensor(artifact.signature), notes=notes)


def plan_content(artifact: Artifact) -> Content:
    """`model.plan`, and one plan more for every further compute capability.

    Raises:
        InvalidParameterError: the graph is not one engine, there is none that can be used, or TensorRT's runtime in
            Triton cannot read it.
    """
    signature = _of_engine(artifact)
    usable = [entry for entry in artifact.engines if entry.usable]
    if not usable:
        why = f": {artifact.engines[0].problem}" if artifact.engines else ""
        raise InvalidParameterError(
            f"{artifact.path} has no engine that can be used{why}; build one first, or use flavour='python'"
        )
    plain = [entry for entry in usable if entry.backend == "tensorrt"]
    if not plain:
        raise InvalidParameterError(
            f"the engines of {artifact.path} are of {usable[0].backend}, which Triton's TensorRT backend cannot load: "
            "build them with backend='tensorrt', or use flavour='python'"
        )
    versions = sorted({entry.version for entry in plain})
    if len(versions) > 1:
        raise InvalidParameterError(
            f"the engines of {artifact.path} are of TensorRT {' and '.join(versions)}, and a server has one version: "
            "export an artifact with engines of one"
        )
    shapes = {tuple(sorted((n, dataclasses.astuple(i)) for p in e.profiles for n, i in p.items())) for e in plain}
    if len(shapes) > 1:
        raise InvalidParameterError(
            f"the engines of {artifact.path} have different profiles, and Triton needs one plan for all shapes of a "
            "GPU: build again with profile_strategy 'Range', or use flavour='python'"
        )
    chosen, plans = _plans(plain)

    def fill(folder: Path) -> None:
        for file, entry in chosen.items():
            link_or_copy(artifact.engine_path(entry), folder / file)

    note = f"Triton's container must have TensorRT {versions[0]}, with which the plan was built"
    return Content(fill, signature, tuple(chosen.values()), plans, (note,))


def _plans(engines: Sequence[EngineEntry]) -> tuple[dict[str, EngineEntry], dict[str, str]]:
    """File name -> engine, and compute capability -> file name. The first engine is the one of any other GPU."""
    chosen = {"model.plan": engines[0]}
    plans: dict[str, str] = {}
    for entry in engines:
        new = [target for target in entry.targets if capability(target) not in plans]
        if entry is engines[0]:
            file = "model.plan"
        elif new:
            file = f"{new[0].lower()}.plan"
            chosen[file] = entry
        plans.update({capability(target): file for target in new})
    return chosen, plans


def capability(target: str) -> str:
    """A compute capability as Triton writes it: "SM89" is "8.9", "SM120" is "12.0".

    Raises:
        InvalidParameterError: no compute capability.
    """
    digits = target.upper().removeprefix("SM")
    if not digits.isdigit() or len(digits) < 2:
        raise InvalidParameterError(f"{target!r} is no compute capability, as 'SM89' is")
    return f"{digits[:-1]}.{digits[-1]}"


def _by_tensor(signature: Signature) -> Signature:
    """The same with the names that the ONNX model has."""
    inputs, outputs = (
        tuple(dataclasses.replace(spec, name=spec.tensor) for spec in side)
        for side in (signature.inputs, signature.outputs)
    )
    return Signature(inputs, outputs, signature.name)


def _of_engine(artifact: Artifact) -> Signature:
    """The signature by the names of the engine's tensors, when the whole graph is one engine."""
    graph = artifact.model.proto.graph
    nodes = list(iter_nodes(graph))
    others = [node for node in nodes if node.domain != ENGINE_DOMAIN]
    if others or len(nodes) != 1:
        what = f"{others[0].op_type} is outside of it" if others else f"it has {len(nodes)} engine nodes"
        raise InvalidParameterError(
            f"{artifact.path} is not one engine as a whole ({what}), as flavour='tensorrt_plan' needs: use "
            "flavour='python'"
        )
    node = nodes[0]
    function = next(f for f in artifact.model.proto.functions if (f.domain, f.name) == (node.domain, node.op_type))
    given = read_attributes(node).data_inputs
    inner = dict(zip(node.input[:given], function.input[:given], strict=True))
    inner |= dict(zip(node.output, function.output, strict=True))
    sides = []
    for specs in (artifact.signature.inputs, artifact.signature.outputs):
        lost = [spec.name for spec in specs if spec.tensor not in inner]
        if lost:
            raise InvalidParameterError(
                f"{artifact.path}: {lost[0]!r} does not pass through the engine, as flavour='tensorrt_plan' needs: use "
                "flavour='python'"
            )
        sides.append(tuple(dataclasses.replace(spec, name=inner[spec.tensor]) for spec in specs))
    return Signature(sides[0], sides[1], artifact.signature.name)


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
