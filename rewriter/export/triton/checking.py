"""Triton's own definition of `config.pbtxt`, asked whether it takes what was written."""

from __future__ import annotations

import importlib
from typing import Any

from google.protobuf import json_format, text_format  # type: ignore[import-untyped]

from rewriter.errors import BackendError, missing_dependency
from rewriter.runtime.other_errors import first_line


def parsed_config(text: str) -> dict[str, Any]:
    """A `config.pbtxt` as the message that Triton reads: field -> value, those that are as by default left out.

    Raises:
        MissingDependencyError: tritonclient, which has the definition, is not installed, or does not fit protobuf here.
        BackendError: a field that is unknown, or a value that is not allowed; the message has the line.
    """
    try:
        definition = importlib.import_module("tritonclient.grpc.model_config_pb2")
    except Exception as error:  # protobuf has errors of its own for code that another version generated
        needed = f"tritonclient[grpc] ({first_line(error)})"
        raise missing_dependency(needed, "triton", "the check of Triton's settings") from error
    try:
        message = text_format.Parse(text, definition.ModelConfig())
    except text_format.ParseError as error:
        raise BackendError(
            f"Triton's definition of config.pbtxt refuses what was to be written ({first_line(error)}): nothing was "
            "written; leave the option out that it names"
        ) from error
    found: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return found
