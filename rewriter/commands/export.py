"""`trt-rewriter export triton|epcontext ARTIFACT -o FOLDER`."""

from __future__ import annotations

import argparse
import json
from typing import Any

#: What an artifact can be exported for -> what that writes.
TARGETS = {
    "triton": "write a model repository of the Triton Inference Server: the next version of a model, and its settings",
    "epcontext": "write model_ctx.onnx, which ONNX Runtime's own TensorRT providers load without this package",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options: a parser for each target."""
    targets = parser.add_subparsers(dest="target_format", metavar="FORMAT", required=True)
    for name, purpose in TARGETS.items():
        target = targets.add_parser(name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.")
        target.add_argument("artifact", metavar="ARTIFACT", help="folder of an artifact")
        _OPTIONS[name](target)
        target.add_argument(
            "--signature", metavar="KEY", help="which of the artifact's signatures (default: the first)"
        )
        target.add_argument("--json", action="store_true", help="print what was written as JSON")


def _triton_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-o", "--output", required=True, metavar="REPO", help="the model repository; made where it is missing")
    add("--name", metavar="NAME", help="the model's name (default: that of the artifact's folder)")
    add(
        "--flavour",
        default="python",
        choices=("python", "onnxruntime", "tensorrt_plan"),
        help="which of Triton's backends runs it. python (default): wherever this package is installed, engines with "
        "native fallback; onnxruntime: the model without engines; tensorrt_plan: when the whole graph is one engine",
    )
    add("--instances", type=int, default=1, metavar="N", help="copies of the model for each device (default: 1)")
    add(
        "--kind",
        default="auto",
        choices=("auto", "cpu", "gpu", "model"),
        help="what the copies run on (default auto: GPUs where the server has some)",
    )
    add("--gpus", type=_numbers, default=(), metavar="0,1", help="numbers of the GPUs, with --kind gpu (default: all)")
    add(
        "--max-queue-delay-us",
        type=int,
        default=1000,
        metavar="US",
        help="how long a request may wait for others to make a batch with, in microseconds (default: 1000)",
    )
    add(
        "--max-batch-size",
        type=int,
        metavar="N",
        help="the largest batch, 0 for none (default: what the engines' profiles allow, 8 without any)",
    )
    add(
        "--engine-version",
        metavar="VERSION",
        help="tensorrt_plan: the TensorRT of the server, where there are engines of several (default: the newest)",
    )
    add(
        "--threads",
        type=int,
        metavar="N",
        help="python: threads of ONNX Runtime in each copy (default: all cores, shared by copies on the CPU)",
    )
    add("--strict", action="store_true", help="python: an engine that cannot be used is an error")
    add("--no-warmup", action="store_true", help="a model is ready before its engines were run once")
    add("--storage-uri", metavar="URI", help="where KServe finds the repository (default: a placeholder)")
    add("--image", metavar="IMAGE", help="the server's image for KServe (default: the cluster's)")
    add("--check", action="store_true", help="have Triton's own definition parse the settings (needs tritonclient)")


def _epcontext_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-o", "--output", required=True, metavar="FOLDER", help="folder to write; missing parents are made")
    add(
        "--flavour",
        default="tensorrt_rtx",
        choices=("tensorrt_rtx", "tensorrt"),
        help="whose engines, and so which provider loads the model (default: tensorrt_rtx)",
    )
    add("--target", metavar="SM89", help="the GPU to take engines for (default: the engines with most GPUs in common)")
    add(
        "--engine-version",
        metavar="VERSION",
        help="the TensorRT of the provider, where there are engines of several (default: the newest)",
    )
    add("--overwrite", action="store_true", help="replace an earlier export in FOLDER")


_OPTIONS = {"triton": _triton_options, "epcontext": _epcontext_options}


def run(arguments: argparse.Namespace) -> int:
    """Exports the artifact, and prints what was written and what is to be known of it."""
    from rewriter.reports.summary import plain_console

    found = _export_triton(arguments) if arguments.target_format == "triton" else _export_epcontext(arguments)
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0
    console = plain_console()
    for note in found["notes"]:
        console.print(f"note: {note}")
    console.print(_summary(found))
    return 0


def _export_triton(arguments: argparse.Namespace) -> dict[str, Any]:
    from rewriter.export.triton import export_triton

    done = export_triton(
        arguments.artifact,
        arguments.output,
        name=arguments.name,
        flavour=arguments.flavour,
        signature=arguments.signature,
        instances=arguments.instances,
        kind=arguments.kind,
        gpus=arguments.gpus,
        max_queue_delay_us=arguments.max_queue_delay_us,
        max_batch_size=arguments.max_batch_size,
        engine_version=arguments.engine_version,
        threads=arguments.threads,
        strict=arguments.strict,
        warmup=not arguments.no_warmup,
        storage_uri=arguments.storage_uri,
        image=arguments.image,
        check=arguments.check,
    )
    return done.to_json()


def _export_epcontext(arguments: argparse.Namespace) -> dict[str, Any]:
    from rewriter.export.epcontext import export_epcontext

    done = export_epcontext(
        arguments.artifact,
        arguments.output,
        flavour=arguments.flavour,
        target=arguments.target,
        engine_version=arguments.engine_version,
        signature=arguments.signature,
        overwrite=arguments.overwrite,
    )
    return {
        "folder": str(done.folder),
        "model": str(done.model),
        "provider": done.provider,
        "engines": {
            op: {"key": e.key, "version": e.version, "targets": [*e.targets]} for op, e in done.engines.items()
        },
        "files": list(done.files),
        "notes": list(done.notes),
    }


def _summary(found: dict[str, Any]) -> str:
    """What was written, in a line."""
    if "repository" not in found:
        count = len(found["engines"])
        return f"wrote {found['model']}: {count} engine{'' if count == 1 else 's'} for {found['provider']}"
    batch = found["max_batch_size"]
    batches = f"batches up to {batch}" if batch else "no batches"
    return f"wrote {found['repository']}: {found['name']}, version {found['version']}, {found['flavour']}, {batches}"


def _numbers(text: str) -> tuple[int, ...]:
    """Reads "0,1"; argparse tells what is no number."""
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: write numbers of GPUs with commas, as 0,1") from error
