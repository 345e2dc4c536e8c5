"""`config.pbtxt`: what Triton is told of a model, as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from passes.segments import TensorSpec
from rewriter.errors import InvalidParameterError
from rewriter.export.batching import LARGEST_NUMBER
from rewriter.export.triton.dtypes import triton_type
from rewriter.export.triton.shapes import Batching, Warmup
from rewriter.export.triton.text import Word, map_entries, message_text
from rewriter.source import Signature

#: Name of a flavour -> (Triton's backend, the file that it reads in a version's folder).
BACKENDS = {
    "python": ("python", "model.py"),
    "onnxruntime": ("onnxruntime", "model.onnx"),
    "tensorrt_plan": ("tensorrt", "model.plan"),
}
KINDS = ("auto", "cpu", "gpu", "model")


@dataclasses.dataclass(frozen=True)
class ConfigOptions:
    """What is chosen, not found in the artifact.

    Attributes:
        instances: copies of the model for each device.
        kind: "auto" (GPUs where there are some), "cpu", "gpu" or "model" (the model chooses).
        gpus: numbers of the GPUs; () for all.
        max_queue_delay_us: how long a request may wait for others to make a batch with, in microseconds.
        parameters: keys for the backend.
        plans: compute capability ("8.9") -> file of the plan for it.
        profiles: how many optimization profiles the plans have.
    """

    instances: int = 1
    kind: str = "auto"
    gpus: tuple[int, ...] = ()
    max_queue_delay_us: int = 1000
    parameters: Mapping[str, str] = dataclasses.field(default_factory=dict)
    plans: Mapping[str, str] = dataclasses.field(default_factory=dict)
    profiles: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidParameterError(f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        for name, least in (("instances", 1), ("max_queue_delay_us", 0)):
            value = getattr(self, name)
            if not _is_number(value, least):
                raise InvalidParameterError(f"{name} must be a number from {least} to {LARGEST_NUMBER}, not {value!r}")
        if not all(_is_number(gpu, 0) for gpu in self.gpus) or len(set(self.gpus)) < len(self.gpus):
            raise InvalidParameterError(f"gpus must be numbers from 0, each of them once, not {list(self.gpus)!r}")
        if self.gpus and self.kind != "gpu":
            raise InvalidParameterError(f"gpus need kind='gpu', not {self.kind!r}")


def _is_number(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST_NUMBER


def config_text(
    name: str,
    flavour: str,
    signature: Signature,
    batching: Batching,
    warmups: Sequence[Warmup],
    options: ConfigOptions | None = None,
) -> str:
    """The text of `config.pbtxt`.

    Rules:
        1. With a batch dimension `dims` leave it out; without one `max_batch_size` is 0 and `dims` are whole.
        2. Dimensions that are not fixed are -1. Where nothing is left beside the batch, it is `dims: [ 1 ]` and a
           reshape to none. Triton has no tensors without dimensions: the python flavour has one of size 1 for them
           (`rewriter.export.triton.serving` reshapes it), the others refuse them.
        3. Only the newest version is served.
        4. `dynamic_batching` stands only where there is a batch above 1.

    Args:
        name: the model's, also that of its folder.
        flavour: a key of `BACKENDS`.
        signature: its inputs and outputs by the names that the backend knows.
        batching: see `find_batching`.
        warmups: see `find_warmups`.
        options: the rest.

    Raises:
        InvalidParameterError: a dtype, or a shape, that Triton has no word for; the message names the tensor.
    """
    options = options or ConfigOptions()
    backend, file = BACKENDS[flavour]
    batched = batching.maximum > 0
    queue: dict[str, Any] | None = None
    if batching.maximum > 1:
        queue = {
            "preferred_batch_size": list(batching.preferred),
            "max_queue_delay_microseconds": options.max_queue_delay_us,
        }
    group = {
        "count": options.instances,
        "kind": Word(f"KIND_{options.kind.upper()}"),
        "gpus": list(options.gpus),
        "profile": [str(number) for number in range(options.profiles)] if options.profiles > 1 else [],
    }
    fields: dict[str, Any] = {
        "name": name,
        "backend": backend,
        "default_model_filename": file,
        "max_batch_size": batching.maximum,
        "input": [_tensor(spec, flavour, batched) for spec in signature.inputs],
        "output": [_tensor(spec, flavour, batched) for spec in signature.outputs],
        "version_policy": {"latest": {"num_versions": 1}},
        "dynamic_batching": queue,
        "instance_group": [group],
        "cc_model_filenames": map_entries(options.plans),
        "parameters": map_entries({k: {"string_value": v} for k, v in options.parameters.items()}),
        "model_warmup": [_warmup(signature, warmup, flavour, batched) for warmup in warmups],
    }
    return message_text(fields)


def shape_notes(signature: Signature, batching: Batching) -> tuple[str, ...]:
    """Which tensors have another shape for a client of Triton than in a call (rule 2 of `config_text`), as a note."""
    rank = 1 if batching.maximum else 0
    specs = (*signature.inputs, *signature.outputs)
    names = [repr(spec.name) for spec in specs if spec.shape is not None and len(spec.shape) == rank]
    if not names:
        return ()
    shapes = ("[batch, 1]", "[batch]") if rank else ("[1]", "[]")
    return (f"Triton's clients see {', '.join(names)} as {shapes[0]}, where a call has {shapes[1]}",)


def _dims(spec: TensorSpec, batched: bool) -> list[int]:
    if spec.shape is None:
        raise InvalidParameterError(
            f"Triton must be told how many dimensions {spec.name!r} has, but the signature does not say: fix its shape "
            "in the model, and convert again"
        )
    dims = [dim if isinstance(dim, int) else -1 for dim in spec.shape[1 if batched else 0 :]]
    if 0 in dims:
        raise InvalidParameterError(f"{spec.name!r} is always empty, {list(spec.shape)}: Triton takes no such tensor")
    return dims


def _tensor(spec: TensorSpec, flavour: str, batched: bool) -> dict[str, Any]:
    kind = Word(triton_type(spec, flavour))
    dims = _dims(spec, batched)
    if not dims and not batched:
        if flavour != "python":
            raise InvalidParameterError(
                f"{spec.name!r} has no dimensions, and Triton takes no such tensor in a model without batches: use "
                "flavour='python', where it has one of size 1"
            )
        return {"name": spec.name, "data_type": kind, "dims": [1]}
    if not dims:
        return {"name": spec.name, "data_type": kind, "dims": [1], "reshape": {"shape": Word("[]")}}
    return {"name": spec.name, "data_type": kind, "dims": dims}


def _warmup(signature: Signature, warmup: Warmup, flavour: str, batched: bool) -> dict[str, Any]:
    start = 1 if batched else 0
    inputs = {
        spec.name: {
            "data_type": Word(triton_type(spec, flavour)),
            "dims": list(warmup.shapes[spec.name][start:]) or [1],
            "zero_data": True,
        }
        for spec in signature.inputs
    }
    shapes = list(warmup.shapes.values())
    batch = shapes[0][0] if batched and shapes else None
    label = " ".join("x".join(map(str, shape)) or "scalar" for shape in shapes)
    return {"name": label, "batch_size": batch, "inputs": map_entries(inputs)}
