"""`trt-rewriter bench OUT`: how fast an artifact runs here, from its load to calls of several threads."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewriter.commands.npz import read_npz
from rewriter.commands.options import check_target, parse_shapes
from rewriter.errors import InvalidParameterError
from rewriter.timing.latencies import TRIM

if TYPE_CHECKING:
    from rewriter.runtime.function import ConvertedFunction
    from rewriter.timing.artifact_timing import TimingOptions
    from rewriter.timing.feeding import Sample


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument("artifact", metavar="OUT", help="folder of an artifact")
    _add_inputs(parser)
    _add_amounts(parser)
    add = parser.add_argument_group("how it is run").add_argument
    add("--signature", metavar="KEY", help="which of the artifact's signatures (default: the first)")
    add(
        "--execution",
        default="auto",
        choices=("auto", "native", "emulate"),
        help="auto: engines where they can be used; native: none; emulate: what the engines would compute, on the CPU",
    )
    add("--provider", default="auto", choices=("auto", "cpu", "cuda"), help="what to run on (default: the best)")
    add("--device", type=int, default=0, metavar="N", help="number of the GPU (default: 0)")
    add(
        "--native-threads",
        type=int,
        metavar="N",
        help="threads of ONNX Runtime on the CPU, as a replica that shares its machine has them (default: all cores)",
    )
    add("--device-inputs", action="store_true", help="inputs lie in the GPU's memory (default: numpy arrays)")
    add("--device-outputs", action="store_true", help="outputs stay in the GPU's memory (default: numpy arrays)")
    add("--no-cuda-graph", action="store_true", help="never capture a CUDA graph")
    add("--no-build-at-runtime", action="store_true", help="only the artifact's own engines: none is built for a shape")
    add("--strict", action="store_true", help="fail when an engine would not be used")
    add = parser.add_argument_group("figures").add_argument
    add("--json", metavar="FILE", help="write all figures to this file, with options, versions and counters")
    add("--csv", metavar="FILE", help="write one line for each set of inputs")
    add("--experiment-name", metavar="NAME", help="kept with the figures, to tell runs apart")


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(
        "inputs", "Made up in the shapes that the engines are tuned for, unless one of these is given."
    ).add_argument
    add(
        "--inputs",
        action="append",
        default=[],
        metavar="IN.npz",
        help="one array an input, named as the signature; may be repeated",
    )
    add(
        "--shapes",
        action="append",
        default=[],
        metavar="NAME:SHAPE[,SHAPE...]",
        help="shapes of made-up inputs, as image:1x224x224x3,8x224x224x3; once an input; each is timed by itself",
    )
    add("--batch-size", type=int, nargs="+", default=[], metavar="N", help="likewise, where only the batch is open")


def _add_amounts(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(
        "how much", "Each kind of measurement goes on until both --iterations and --duration are reached."
    ).add_argument
    add("--iterations", type=int, default=10, metavar="N", help="least number of timed calls (default 10)")
    add("--duration", type=float, default=3.0, metavar="SECONDS", help="least time (default 3)")
    add("--warmup-iterations", type=int, default=10, metavar="N", help="calls that are not timed (default 10)")
    add("--threads", type=int, default=1, metavar="N", help="time N callers at once, too (default 1: not)")
    add(
        "--trim-mean-percentage",
        type=float,
        default=TRIM,
        metavar="SHARE",
        help=f"of the fastest and of the slowest calls, left out of the trimmed mean (default {TRIM:g})",
    )


def run(arguments: argparse.Namespace) -> int:
    """Times the artifact and prints, and writes the files that were asked for."""
    from rewriter.artifact import load_artifact
    from rewriter.reports.summary import plain_console
    from rewriter.timing.artifact_timing import TimingOptions, time_artifact
    from rewriter.timing.circumstances import circumstances
    from rewriter.timing.tables import print_timing, write_csv

    check_target("--json", arguments.json)
    check_target("--csv", arguments.csv)
    options = TimingOptions(
        iterations=arguments.iterations,
        duration=arguments.duration,
        warmup_iterations=arguments.warmup_iterations,
        threads=arguments.threads,
        device_inputs=arguments.device_inputs,
        device_outputs=arguments.device_outputs,
        trim=arguments.trim_mean_percentage,
    )
    made = _maker(arguments)
    found = time_artifact(arguments.artifact, made, options, **_load_options(arguments))
    artifact = load_artifact(arguments.artifact, check_hashes=False, signature=arguments.signature)
    around = circumstances(
        on_gpu=found.provider == "cuda", gpu=found.gpu, engines=artifact.engines, params=artifact.params
    )
    print_timing(plain_console(), f"{artifact.path}, signature {artifact.signature.name!r}", found, around)
    document = {
        "artifact": artifact.path.name,
        "signature": artifact.signature.name,
        "experiment_name": arguments.experiment_name,
        "environment": around,
        "options": _options(arguments, options),
        **found.to_dict(),
    }
    if arguments.json:
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"
        _write(arguments.json, text)
    if arguments.csv:
        _write(arguments.csv, write_csv(document))
    return 0


def _maker(arguments: argparse.Namespace) -> Any:
    """What makes the inputs for the loaded function; files and shapes are read at once, so that errors come early."""
    from rewriter.runtime.choosing import usable_here
    from rewriter.timing.feeding import samples_for

    shapes = parse_shapes(arguments.shapes)
    given = [read_npz(path) for path in arguments.inputs]
    if sum(map(bool, (given, shapes, arguments.batch_size))) > 1:
        raise InvalidParameterError("--inputs, --shapes and --batch-size each say what is run: give one of them")

    def make(function: ConvertedFunction) -> list[Sample]:
        engines = usable_here(function.engines, function.stats()["engines_chosen"])
        return samples_for(function.signature, engines, given=given, shapes=shapes, batch_sizes=arguments.batch_size)

    return make


def _load_options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "signature": arguments.signature,
        "provider": arguments.provider,
        "execution": arguments.execution,
        "device": arguments.device,
        "threads": arguments.native_threads,
        "strict": arguments.strict or None,  # else the environment decides
        "cuda_graph": not arguments.no_cuda_graph,
        "allow_build_at_runtime": False if arguments.no_build_at_runtime else None,  # else the artifact decides
    }


def _options(arguments: argparse.Namespace, options: TimingOptions) -> dict[str, Any]:
    """The options as they go into the files."""
    import dataclasses

    loaded = _load_options(arguments)
    # "threads" are those that call, as the option has it.
    return {**loaded, "native_threads": loaded["threads"], **dataclasses.asdict(options)}


def _write(path: str, text: str) -> None:
    try:
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            file.write(text)
    except OSError as error:
        raise InvalidParameterError(f"cannot write {path!r}: {error}") from error
