"""The options that conversion commands share: parameter names with dashes."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from rewriter import params as parameters
from rewriter.commands.precision_options import add_precision_options, precision_arguments
from rewriter.errors import InvalidParameterError

Shapes = dict[str, tuple[tuple[int, ...], ...]]


def add_conversion_options(parser: argparse.ArgumentParser) -> None:
    """Adds one option a conversion parameter."""
    defaults = parameters.DEFAULT_TRT_CONVERSION_PARAMS
    add = parser.add_argument
    add("--minimum-segment-size", type=int, default=defaults.minimum_segment_size, help="effective nodes (default 3)")
    add(
        "--max-workspace-size-bytes",
        type=int,
        default=defaults.max_workspace_size_bytes,
        help="workspace limit of each engine (default 1073741824)",
    )
    add(
        "--maximum-cached-engines",
        type=int,
        default=defaults.maximum_cached_engines,
        help="engines kept in memory for each engine node at run time (default 1)",
    )
    add(
        "--cache-full",
        choices=parameters.CACHE_FULL_RULES,
        default=parameters.CACHE_FULL_RULES[0],
        help="shapes that no engine in memory takes, when there is no room for another: run the native segment, or "
        "evict the least recently used engine (default native)",
    )
    add(
        "--is-dynamic-op",
        action=argparse.BooleanOptionalAction,
        default=defaults.is_dynamic_op,
        help="no: static engines for batches 1 to --max-batch-size; only the batch may be unknown (default yes)",
    )
    add(
        "--max-batch-size",
        type=int,
        default=defaults.max_batch_size,
        help="largest batch of engines built with --no-is-dynamic-op (default 1)",
    )
    add("--no-build-at-runtime", action="store_true", help="requests never build engines")
    add(
        "--dynamic-shape-profile-strategy",
        choices=parameters.supported_profile_strategies(),
        help="which shapes around the samples an engine covers (default Range: from the smallest to the largest)",
    )
    add(
        "--backend",
        default="auto",
        choices=("auto", "tensorrt_rtx", "tensorrt"),
        help="the TensorRT package (default auto: tensorrt where there is a GPU, else tensorrt_rtx)",
    )
    add("--targets", default="", help="GPU architectures, as sm80,sm89 (default: all the backend supports)")
    add("--op-denylist", default="", help="ONNX operator types that stay native, as Conv,MatMul")
    add("--node-denylist", action="append", default=[], help="regular expression on node names; may be repeated")
    add(
        "--rewriter-config-template",
        metavar="FILE",
        help="which graph passes run: a RewriterConfig as text proto (.pbtxt) or its fields as JSON (default: all)",
    )
    add("--op-fakelist", default="", help="operator types to cut as if TensorRT took them: what if (never built)")
    add("--max-engines", type=int, metavar="N", help="only the N largest segments get engines (default: all)")
    add(
        "--engine-cache-dir",
        metavar="DIR",
        help="keep built engines in this folder, and take those that are there (default: none are kept)",
    )
    add(
        "--engine-cache-max-bytes",
        type=int,
        metavar="N",
        help="what the engines in that folder may take; the least recently used go first (default 8589934592)",
    )
    add("--allow-double", action="store_true", help="let TensorRT compute float64 in float32")
    add_precision_options(parser)


def conversion_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """The parsed options as keyword arguments of `Converter`."""
    found = {
        "rewriter_config_template": _read_template(arguments.rewriter_config_template),
        "minimum_segment_size": arguments.minimum_segment_size,
        "max_workspace_size_bytes": arguments.max_workspace_size_bytes,
        "maximum_cached_engines": arguments.maximum_cached_engines,
        "is_dynamic_op": arguments.is_dynamic_op,
        "max_batch_size": arguments.max_batch_size,
        "allow_build_at_runtime": not arguments.no_build_at_runtime,
        "cache_full": arguments.cache_full,
        "dynamic_shape_profile_strategy": arguments.dynamic_shape_profile_strategy,
        "backend": arguments.backend,
        "targets": words(arguments.targets),
        "op_denylist": words(arguments.op_denylist),
        "node_denylist": tuple(arguments.node_denylist),
        "op_fakelist": words(arguments.op_fakelist),
        "max_engines": arguments.max_engines,
        "engine_cache_dir": arguments.engine_cache_dir,
        "engine_cache_max_bytes": arguments.engine_cache_max_bytes,
        "allow_double": arguments.allow_double,
        **precision_arguments(arguments),
    }
    names = [name for name in found if name in parameters.ConversionParams._fields]
    params = parameters.ConversionParams(**{name: found.pop(name) for name in names})
    return {**found, "conversion_params": params}


def _read_template(name: str | None) -> Any:
    """A RewriterConfig out of a file: a mapping from JSON, TensorFlow's proto from text.

    Raises:
        InvalidParameterError: it cannot be read, or is neither.
        MissingDependencyError: a text proto, and TensorFlow is not installed.
    """
    if name is None:
        return None
    option = f"--rewriter-config-template {name!r}"
    try:
        text = Path(name).read_text("utf-8")
        if Path(name).suffix.lower() == ".json":
            return json.loads(text)
    except (OSError, ValueError) as error:
        raise InvalidParameterError(f"{option} cannot be read: {error}") from error
    from google.protobuf import text_format  # type: ignore[import-untyped]

    from rewriter.frontend.callee import import_tensorflow

    import_tensorflow()
    from tensorflow.core.protobuf import rewriter_config_pb2

    try:
        return text_format.Parse(text, rewriter_config_pb2.RewriterConfig())
    except text_format.ParseError as error:
        raise InvalidParameterError(f"{option} is no RewriterConfig in text form: {error}") from error


def check_target(option: str, path: str | None) -> None:
    """Refuses a file that cannot be written for certain, before the work that would be lost; None is no file.

    Raises:
        InvalidParameterError: an empty path, its folder is not there, it is a folder itself, or nobody lets us write.
    """
    if path is None:
        return
    if not path:
        raise InvalidParameterError(f"{option} is an empty path: name a file")
    target = Path(path).resolve()
    if not target.parent.is_dir():
        raise InvalidParameterError(f"{option} {path!r}: there is no such folder")
    if target.is_dir():
        raise InvalidParameterError(f"{option} {path!r} is a folder: name a file")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise InvalidParameterError(f"{option} {path!r} cannot be written: permission denied")


def words(text: str) -> tuple[str, ...]:
    """Splits at commas; empty pieces are dropped."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def parse_shapes(texts: list[str]) -> Shapes:
    """Reads "image:1x224x224x3,8x224x224x3": input name -> shapes, in order. "scalar" is rank 0.

    Raises:
        InvalidParameterError: it is written otherwise.
    """
    shapes: Shapes = {}
    for text in texts:
        name, colon, rest = text.rpartition(":")
        if name in shapes:
            raise InvalidParameterError(f"--shapes names the input {name!r} twice: give all its shapes at once")
        if not colon or not name:
            raise InvalidParameterError(
                f"--shapes {text!r}: write NAME:DIMxDIM,DIMxDIM, for example image:1x8x8,32x8x8"
            )
        try:
            shapes[name] = tuple(
                () if shape == "scalar" else tuple(int(dim) for dim in shape.split("x")) for shape in words(rest)
            )
        except ValueError as error:
            raise InvalidParameterError(f"--shapes {text!r}: a dimension is no number") from error
        if not shapes[name] or any(dim < 1 for shape in shapes[name] for dim in shape):
            raise InvalidParameterError(f"--shapes {text!r}: give at least one shape; dimensions are at least 1")
    return shapes
