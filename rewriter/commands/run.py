"""`trt-rewriter run OUT --inputs in.npz --outputs out.npz`."""

from __future__ import annotations

import argparse
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument("artifact", metavar="OUT", help="folder of an artifact")
    parser.add_argument("--inputs", required=True, metavar="IN.npz", help="one array an input, named as the signature")
    parser.add_argument("--signature", metavar="KEY", help="which of the artifact's signatures (default: the first)")
    parser.add_argument("--outputs", metavar="OUT.npz", help="file to write the outputs to")
    parser.add_argument(
        "--provider",
        default="auto",
        choices=("auto", "cpu", "cuda"),
        help="what to run on (default: the best there is)",
    )
    parser.add_argument(
        "--execution",
        default="auto",
        choices=("auto", "native", "emulate"),
        help="auto: engines where they can be used; native: none; emulate: what the engines would compute, on the CPU",
    )
    parser.add_argument("--strict", action="store_true", help="fail when an engine would not be used")
    parser.add_argument("--device", type=int, default=0, metavar="N", help="number of the GPU (default: 0)")
    parser.add_argument("--no-cuda-graph", action="store_true", help="never capture a CUDA graph")
    parser.add_argument(
        "--wait-for-builds",
        action="store_true",
        help="wait for engines that the artifact lacks for these shapes to be built, instead of running natively",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the artifact once and prints its outputs' shapes and ranges, which engines ran, and what ran natively."""
    from rewriter.commands.npz import read_npz, write_npz
    from rewriter.reports.summary import plain_console
    from rewriter.runtime.choosing import choice_lines
    from rewriter.runtime.loading import load

    feeds = read_npz(arguments.inputs)
    console = plain_console()
    options: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in ("signature", "provider", "strict", "execution", "device", "wait_for_builds")
    }
    options["strict"] = arguments.strict or None  # else the environment decides
    with load(arguments.artifact, cuda_graph=not arguments.no_cuda_graph, **options) as function:
        outputs = function.run(feeds)
        stats = function.stats()
    for name, array in outputs.items():
        span = f" {array.min():.6g} .. {array.max():.6g}" if array.size and array.dtype.kind in "iuf" else ""
        console.print(f"{name}: {array.dtype} {'x'.join(map(str, array.shape)) or 'scalar'}{span}")
    for line in choice_lines(stats.get("engines_chosen", {}), known=stats["fallbacks"]):
        console.print(line)
    for reason, count in stats["fallbacks"].items():
        console.print(f"native: {count} engine call(s): {reason}")
    if arguments.outputs:
        write_npz(arguments.outputs, outputs)
    return 0
