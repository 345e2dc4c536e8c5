"""The options that say what is converted: which part of the source, and what of it."""

from __future__ import annotations

import argparse
from typing import Any

from rewriter.commands.options import words


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Adds the source and what is said of it."""
    add = parser.add_argument
    add("source", metavar="SRC", help="SavedModel directory (also one of TF-TRT), .keras, .h5, .pb or .onnx file")
    add("--tags", help="tags of the SavedModel's graph, separated by commas (default serve)")
    add(
        "--signature",
        metavar="KEY[,KEY...]",
        help="signatures of the SavedModel to convert, or '*' for all of them (default serving_default)",
    )
    add(
        "--graph-inputs", metavar="NAMES", help="input tensors of a frozen GraphDef, as x:0,mask:0 (default: found out)"
    )
    add("--graph-outputs", metavar="NAMES", help="output tensors of a frozen GraphDef (default: found out)")
    add(
        "--specialize",
        metavar="NAME=SIZE[,NAME=SIZE...]",
        help="fix open dimensions before the export, as batch=8,image:1=224; removes shape arithmetic",
    )
    add("--no-tensorflow-islands", action="store_true", help="refuse what ONNX has no word for; default: keep it in TF")
    add("--keep-in-tensorflow", default="", metavar="OPS", help="TensorFlow operators that stay there in any case")
    add(
        "--tolerance",
        type=float,
        help="largest relative difference from TensorFlow that the check of the export lets pass (default 1e-4)",
    )


def source_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """The parsed options as keyword arguments of `Converter`."""
    keys = words(arguments.signature or "")
    return {
        "model": arguments.source,
        "input_saved_model_tags": words(arguments.tags) if arguments.tags else None,
        "input_saved_model_signature_key": keys[0] if len(keys) == 1 else (keys or None),
        "inputs": words(arguments.graph_inputs) if arguments.graph_inputs else None,
        "outputs": words(arguments.graph_outputs) if arguments.graph_outputs else None,
        "specialize": arguments.specialize,
        "tensorflow_islands": not arguments.no_tensorflow_islands,
        "keep_in_tensorflow": words(arguments.keep_in_tensorflow),
        "tolerance": arguments.tolerance,
    }
