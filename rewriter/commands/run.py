"""`trt-rewriter run OUT --inputs in.npz --outputs out.npz`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument("artifact", metavar="OUT", help="folder of an artifact")
    parser.add_argument("--inputs", required=True, metavar="IN.npz", help="one array an input, named as the signature")
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


def run(arguments: argparse.Namespace) -> int:
    """Runs the artifact once and prints its outputs' shapes and ranges."""
    import numpy as np

    from rewriter.commands.npz import read_npz
    from rewriter.errors import InputError
    from rewriter.runtime.loading import load
    from rewriter.summary import plain_console

    feeds = read_npz(arguments.inputs)
    console = plain_console()
    options = {"provider": arguments.provider, "strict": arguments.strict, "execution": arguments.execution}
    with load(arguments.artifact, **options) as function:
        outputs = function(**feeds)
        stats = function.stats()
    for name, array in outputs.items():
        span = f" {array.min():.6g} .. {array.max():.6g}" if array.size and array.dtype.kind in "iuf" else ""
        console.print(f"{name}: {array.dtype} {'x'.join(map(str, array.shape)) or 'scalar'}{span}")
    for reason, count in stats["fallbacks"].items():
        console.print(f"native: {count} engine call(s): {reason}")
    if arguments.outputs:
        try:
            with Path(arguments.outputs).open("wb") as file:  # a name would get ".npz" added to it
                np.savez(file, **outputs)
        except OSError as error:
            raise InputError(f"cannot write the outputs to {arguments.outputs!r}: {error}") from error
    return 0
