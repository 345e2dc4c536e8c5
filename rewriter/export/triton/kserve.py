"""The InferenceService that serves a model repository with KServe."""

from __future__ import annotations

import json
import re

#: Stands where only the user knows.
STORAGE_PLACEHOLDER = "pvc://CLAIM/PATH/OF/THE/REPOSITORY"
_LONGEST_NAME = 63


def service_name(name: str) -> str:
    """A name for Kubernetes: lower case letters, digits and "-", at most 63, beginning with a letter."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    plain = plain if plain[:1].isalpha() else f"model-{plain}"
    return plain[:_LONGEST_NAME].rstrip("-")


def service_text(
    name: str, *, gpu: bool, package: bool = False, storage_uri: str | None = None, image: str | None = None
) -> str:
    """The YAML of an InferenceService (v1beta1) for Triton, with its HTTP protocol v2.

    Args:
        name: the model's.
        gpu: True asks for one GPU.
        package: True says beside a missing `image` that it must have trt-rewriter installed (python flavour).
        storage_uri: where the cluster finds the repository; None writes a placeholder and says so.
        image: Triton's image; None for the one of the cluster's runtime.
    """
    todo = "  # where the cluster finds this repository: fill it in" if storage_uri is None else ""
    # A JSON string is a YAML string as well: nothing in a value can break out of it.
    lines = [
        "apiVersion: serving.kserve.io/v1beta1",
        "kind: InferenceService",
        "metadata:",
        f"  name: {service_name(name)}",
        "spec:",
        "  predictor:",
        "    model:",
        "      modelFormat:",
        "        name: triton",
        "      protocolVersion: v2",
        f"      storageUri: {json.dumps(storage_uri or STORAGE_PLACEHOLDER)}{todo}",
    ]
    if image is not None:
        lines.append(f"      image: {json.dumps(image)}")
    elif package:
        lines.append("      # image: one of Triton in which trt-rewriter is installed")
    if gpu:
        lines += ["      resources:", "        limits:", '          nvidia.com/gpu: "1"']
    return "\n".join(lines) + "\n"
