"""The tensorrt_plan flavour: which engines of an artifact become plans, and for which GPUs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from passes.engine_node import read_attributes
from passes.graph.walk import iter_nodes
from passes.segments import ENGINE_DOMAIN
from rewriter.artifact import Artifact, EngineEntry
from rewriter.artifact.islands import link_or_copy
from rewriter.errors import InvalidParameterError
from rewriter.export.triton.contents import Content
from rewriter.source import Signature


def plan_content(artifact: Artifact, version: str | None = None) -> Content:
    """`model.plan`, and one plan more for every further compute capability.

    Rules:
        1. All plans are of one version of TensorRT, for a server has one: `version`, else the newest there is.
        2. `model.plan` is what a GPU gets that no other plan is for: an engine that does not say what it was built
           for, or else the first one.
        3. Of several engines for one compute capability the first is taken.

    Raises:
        InvalidParameterError: the graph is not one engine, there is none that can be used or is of `version`, or
            TensorRT's runtime in Triton cannot read it.
    """
    signature = _of_engine(artifact)
    plain = _of_version(artifact, _loadable(artifact), version)
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

    return Content(fill, signature, tuple(chosen.values()), plans, _plan_notes(artifact, plain, chosen, plans))


def _loadable(artifact: Artifact) -> list[EngineEntry]:
    """The engines that Triton's TensorRT backend loads."""
    usable = [entry for entry in artifact.engines if entry.usable]
    if not usable:
        why = f": {artifact.engines[0].problem}" if artifact.engines else ""
        raise InvalidParameterError(
            f"{artifact.path} has no engine that can be used{why}; build one first (trt-rewriter build ARTIFACT "
            "--backends tensorrt), or use flavour='python'"
        )
    plain = [entry for entry in usable if entry.backend == "tensorrt"]
    if not plain:
        raise InvalidParameterError(
            f"the engines of {artifact.path} are of {usable[0].backend}, which Triton's TensorRT backend cannot load: "
            "build others (trt-rewriter build ARTIFACT --backends tensorrt), or use flavour='python'"
        )
    return plain


def _of_version(artifact: Artifact, engines: Sequence[EngineEntry], version: str | None) -> list[EngineEntry]:
    """The engines of one version of TensorRT."""
    versions = {entry.version for entry in engines}
    if version is not None and version not in versions:
        raise InvalidParameterError(
            f"{artifact.path} has no engine of TensorRT {version}; it has those of {', '.join(_sorted(versions))}"
        )
    taken = version or _sorted(versions)[-1]
    return [entry for entry in engines if entry.version == taken]


def _sorted(versions: Iterable[str]) -> list[str]:
    """Versions, the newest last: "10.13.2" is newer than "10.9.0.34"."""
    return sorted(versions, key=lambda text: ([int(number) for number in re.findall(r"\d+", text)], text))


def _plans(engines: Sequence[EngineEntry]) -> tuple[dict[str, EngineEntry], dict[str, str]]:
    """File name -> engine, and compute capability -> file name (rules 2 and 3 of `plan_content`)."""
    default = next((entry for entry in engines if not entry.targets), engines[0])
    chosen = {"model.plan": default}
    plans = dict.fromkeys(map(capability, default.targets), "model.plan")
    for entry in engines:
        new = [target for target in entry.targets if capability(target) not in plans]
        if new:
            file = f"{new[0].lower()}.plan"
            chosen[file] = entry
            plans.update({capability(target): file for target in new})
    return chosen, plans


def _plan_notes(
    artifact: Artifact,
    engines: Sequence[EngineEntry],
    chosen: Mapping[str, EngineEntry],
    plans: Mapping[str, str],
) -> tuple[str, ...]:
    """What was taken, and what was not."""
    version = engines[0].version
    notes = [f"Triton's container must have TensorRT {version}, with which the plan was built"]
    others = {e.version for e in artifact.engines if e.usable and e.backend == "tensorrt" and e.version != version}
    if others:
        notes.append(
            f"the engines of TensorRT {', '.join(_sorted(others))} are left out: all plans of a server are of one "
            f"version, here {version}; choose another with engine_version=... (--engine-version)"
        )
    left = sum(entry not in chosen.values() for entry in engines)
    if left:
        notes.append(f"{left} further engine{'' if left == 1 else 's'} for the same GPUs left out: the first is taken")
    told = ", ".join(f"{number} ({file})" for number, file in plans.items())
    if len(chosen) > 1:
        notes.append(f"one plan for each compute capability: {told}; any other GPU is given model.plan")
    elif plans:
        notes.append(f"the plan is for compute capability {', '.join(plans)} only")
    return tuple(notes)


def capability(target: str) -> str:
    """A compute capability as Triton writes it: "SM89" is "8.9", "SM120" is "12.0".

    Raises:
        InvalidParameterError: no compute capability.
    """
    digits = target.upper().removeprefix("SM")
    if not digits.isdigit() or len(digits) < 2:
        raise InvalidParameterError(f"{target!r} is no compute capability, as 'SM89' is")
    return f"{digits[:-1]}.{digits[-1]}"


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
