"""The two execution providers of ONNX Runtime that run engines, and the EPContext node that each of them reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from onnx import NodeProto, helper

from rewriter.errors import ExportError, InvalidParameterError

#: Domain and operator of the node behind which an execution provider finds an engine.
CONTEXT_DOMAIN = "com.microsoft"
CONTEXT_OP = "EPContext"
CONTEXT_DOMAIN_VERSION = 1
#: Bytes at the beginning of an engine from which a provider tells whether it can take the rest.
HEADER_BYTES = 64
#: From this architecture on (Ampere) a provider calls engines "80+".
_AMPERE = 80


@dataclasses.dataclass(frozen=True)
class Provider:
    """One execution provider.

    Attributes:
        flavour: the TensorRT package whose engines it runs, "tensorrt_rtx" or "tensorrt".
        name: how ONNX Runtime calls it; a node whose `source` is another provider's is refused.
        sdk_version: what it writes as `ep_sdk_version`; "" stands for TensorRT's own version.
        whole_node: True: it writes, and expects, every attribute that the schema has, not the few that it must have.
        spans_gpus: True: its engines run on later GPUs, too, which it calls "80+"; else on one compute capability only.
        compatibility: True: it asks the model's metadata, before anything is loaded, whether the engines fit.
        tried: the release that loaded and ran such exports; "" for none.
    """

    flavour: str
    name: str
    sdk_version: str = ""
    whole_node: bool = False
    spans_gpus: bool = False
    compatibility: bool = False
    tried: str = ""


PROVIDERS: Mapping[str, Provider] = {
    provider.flavour: provider
    for provider in (
        Provider(
            "tensorrt_rtx",
            "NvTensorRTRTXExecutionProvider",
            "1.0",
            whole_node=True,
            spans_gpus=True,
            compatibility=True,
            tried="0.3.0 (TensorRT-RTX 1.5.0.114, on an H100)",
        ),
        Provider("tensorrt", "TensorrtExecutionProvider"),
    )
}


@dataclasses.dataclass(frozen=True)
class Context:
    """What one EPContext node says.

    Attributes:
        partition: name of the node and of the partition; unique in the model.
        file: the engine, a plain file name: providers refuse absolute paths and "..".
        version: of the TensorRT that built it.
        targets: compute capabilities that it was built for, as "SM89"; () where nobody knows.
        model_file: name of the model that it was built of. Only engines without weights are refitted from it.
    """

    partition: str
    file: str
    version: str
    targets: tuple[str, ...]
    model_file: str


def find_provider(flavour: object) -> Provider:
    """The provider that runs the engines of a TensorRT package.

    Raises:
        InvalidParameterError: there is none.
    """
    provider = PROVIDERS.get(flavour) if isinstance(flavour, str) else None
    if provider is None:
        raise InvalidParameterError(f"flavour must be one of {', '.join(map(repr, PROVIDERS))}, not {flavour!r}")
    return provider


def context_node(provider: Provider, context: Context, inputs: Sequence[str], outputs: Sequence[str]) -> NodeProto:
    """The node, with every attribute in the type that the schema gives it."""
    attributes: dict[str, Any] = {
        "source": provider.name,
        "embed_mode": 0,  # the attribute below is a file name; a reader takes its absence for a defect
        "ep_cache_context": context.file,
        "onnx_model_filename": context.model_file,
        "ep_sdk_version": provider.sdk_version or context.version,
    }
    architecture = hardware_architecture(provider, context.targets)
    if architecture:
        attributes["hardware_architecture"] = architecture
    if provider.whole_node:
        attributes |= {
            "main_context": 0,  # every node owns its engine
            "partition_name": context.partition,
            "ep_context_op_domain": CONTEXT_DOMAIN,
            "max_size": 0,
        }
    return helper.make_node(CONTEXT_OP, inputs, outputs, name=context.partition, domain=CONTEXT_DOMAIN, **attributes)


def hardware_architecture(provider: Provider, targets: Iterable[str]) -> str:
    """How a provider spells what an engine runs on: "80+" for Ampere and later, or the lowest number; "" if unknown."""
    lowest = min((int(target[2:]) for target in targets), default=0)
    if not lowest:
        return ""
    return f"{_AMPERE}+" if provider.spans_gpus and lowest >= _AMPERE else str(lowest)


def compatibility_info(header: bytes, file: str) -> str:
    """The metadata value that tells a provider whether it can take an engine: its header in hexadecimal.

    Args:
        header: at least the first `HEADER_BYTES` bytes of the engine.
        file: whose they are, for the message.

    Raises:
        ExportError: the file is shorter than a header.
    """
    if len(header) < HEADER_BYTES:
        raise ExportError(f"{file} has {len(header)} bytes, so it is no engine of TensorRT: build it again")
    return header[:HEADER_BYTES].hex()


def compatibility_key(provider: Provider) -> str:
    """The name of that metadata value."""
    return f"ep_compatibility_info.{provider.name}"
