"""The options of the benchmark scripts, named as in TF-TRT's own benchmark suite, and the files they ask for.

    parser = argparse.ArgumentParser(...)
    add_metrics_options(parser)                                 # --export_metrics_json_path (--json), ...csv_path, ...
    add_timing_options(parser, num_iterations=50)               # --batch_size, --num_iterations, ...
    add_conversion_options(parser)                              # --precision, --minimum_segment_size, ...
    arguments = parse(parser)
    Converter(source, **converter_arguments(arguments))
    export_metrics(arguments, rows, question="...")

Where the suite and this project differ: --batch_size takes several numbers, each a row of its own; --num_iterations
counts timed calls only (the suite's includes the warm-up); --minimum_segment_size is 3 as in the converter (the
suite's is 5), and --max_workspace_size 1 GiB likewise (the suite's is 8 GiB). As in the suite, FP32 may use TF32 unless
--no_tf32 is given. With only `add_metrics_options`, a script keeps its other options: `arguments.json` and
`arguments.csv` are paths, or None.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _common import environment, write_json

#: What `--precision` takes: the suite's three and ours.
PRECISIONS = ("FP32", "FP16", "INT8", "TF32", "BF16", "FP8")
#: Options of a conversion, in the order of --help.
CONVERSION_OPTIONS = (
    "precision", "minimum_segment_size", "max_workspace_size", "num_build_batches", "num_calib_batches",
    "use_dynamic_shape", "allow_build_at_runtime", "no_tf32", "detailed_conversion_summary",
)  # fmt: skip
#: What is no option of the measurement itself: where results and other files go, and how a script calls itself.
_NOT_RECORDED = (
    "json", "csv", "worker", "child", "work", "folder", "cache", "python", "ray_python",
    "triton_python",
)  # fmt: skip


def add_metrics_options(parser: argparse.ArgumentParser) -> None:
    """Adds where the figures go: `json`, `csv` (a Path or None) and `experiment_name` in the parsed arguments."""
    group = parser.add_argument_group("figures")
    group.add_argument(
        "--export_metrics_json_path", "--json", dest="json", type=Path, metavar="FILE", help="write all figures as JSON"
    )
    group.add_argument(
        "--export_metrics_csv_path", "--csv", dest="csv", type=Path, metavar="FILE", help="write the rows as CSV"
    )
    group.add_argument("--experiment_name", metavar="NAME", help="kept with the figures, to tell runs apart")


def add_timing_options(
    parser: argparse.ArgumentParser,
    *,
    batch_size: Sequence[int] = (8,),
    num_iterations: int = 100,
    num_warmup_iterations: int = 20,
) -> None:
    """Adds how much is timed; the arguments are the defaults of the script."""
    group = parser.add_argument_group("timing")
    add = group.add_argument
    add("--batch_size", type=_positive, nargs="+", default=list(batch_size), metavar="N", help="default %(default)s")
    add(
        "--num_iterations",
        type=_positive,
        default=num_iterations,
        metavar="N",
        help="timed calls of each system; the warm-up is not counted (default %(default)s)",
    )
    add(
        "--num_warmup_iterations",
        type=_not_negative,
        default=num_warmup_iterations,
        metavar="N",
        help="calls before these, which are not timed (default %(default)s)",
    )
    add(
        "--trim_mean_percentage",
        type=_share,
        default=0.1,
        metavar="SHARE",
        help="share of the fastest and of the slowest calls left out of the trimmed mean, 0 to below 0.5 (default 0.1)",
    )


def add_conversion_options(
    parser: argparse.ArgumentParser,
    names: Sequence[str] = CONVERSION_OPTIONS,
    *,
    precision: str = "FP32",
    minimum_segment_size: int = 3,
) -> None:
    """Adds how a model is converted.

    Args:
        parser: where to.
        names: which of `CONVERSION_OPTIONS`; the others keep their defaults in `converter_arguments`.
        precision: the script's default.
        minimum_segment_size: likewise.
    """
    group = parser.add_argument_group("conversion")
    words: dict[str, dict[str, Any]] = {
        "precision": {
            "type": str.upper,
            "choices": PRECISIONS,
            "default": precision,
            "help": "arithmetic of the engines (default %(default)s); FP32 may use TF32, see --no_tf32",
        },
        "minimum_segment_size": {
            "type": int,
            "default": minimum_segment_size,
            "metavar": "N",
            "help": "effective nodes that an engine needs (default %(default)s)",
        },
        "max_workspace_size": {
            "type": _positive,
            "default": 1 << 30,
            "metavar": "BYTES",
            "help": "the builder's workspace for each engine (default %(default)s)",
        },
        "num_build_batches": {
            "type": _positive,
            "default": 1,
            "metavar": "N",
            "help": "batches that the engines' shapes are taken from (default %(default)s)",
        },
        "num_calib_batches": {
            "type": _positive,
            "default": 10,
            "metavar": "N",
            "help": "batches of the calibration, INT8 and FP8 (default %(default)s)",
        },
        "use_dynamic_shape": {"action": "store_true", "help": "one engine for all batch sizes; else one for each"},
        "allow_build_at_runtime": {"action": "store_true", "help": "calls may have missing engines built"},
        "no_tf32": {"action": "store_true", "help": "FP32 is never computed in TF32 (10 bits of mantissa)"},
        "detailed_conversion_summary": {"action": "store_true", "help": "print the summary of each conversion"},
    }
    for name in names:
        group.add_argument(f"--{name}", **words[name])


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses, and refuses what does not go together or cannot be written; the error comes before the first run."""
    arguments = parser.parse_args(argv)
    for option, path in (("--export_metrics_json_path", "json"), ("--export_metrics_csv_path", "csv")):
        target = getattr(arguments, path, None)
        if target is not None and not target.resolve().parent.is_dir():
            parser.error(f"{option} {target}: there is no such folder")
    if getattr(arguments, "no_tf32", False) and getattr(arguments, "precision", None) == "TF32":
        parser.error("--no_tf32 and --precision TF32 contradict each other: leave one of them out")
    return arguments


def precision_mode(arguments: argparse.Namespace) -> str:
    """The converter's `precision_mode`: FP32 is TF32 unless --no_tf32, as TensorFlow and TF-TRT have it."""
    precision: str = getattr(arguments, "precision", "FP32")
    return "TF32" if precision == "FP32" and not getattr(arguments, "no_tf32", False) else precision


def converter_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """The parsed options as keyword arguments of `Converter`; options that the script lacks are left out.

    Without --use_dynamic_shape engines are made for each shape that `build()` sees (strategy "Optimal"), with it for
    the range of them; --num_build_batches and --num_calib_batches are for the script's own input functions.
    """
    found: dict[str, Any] = {}
    if hasattr(arguments, "precision"):
        found["precision_mode"] = precision_mode(arguments)
    for option, name in (
        ("minimum_segment_size", "minimum_segment_size"),
        ("max_workspace_size", "max_workspace_size_bytes"),
        ("allow_build_at_runtime", "allow_build_at_runtime"),
    ):
        if hasattr(arguments, option):
            found[name] = getattr(arguments, option)
    if hasattr(arguments, "use_dynamic_shape"):
        found["dynamic_shape_profile_strategy"] = "Range" if arguments.use_dynamic_shape else "Optimal"
    return found


def recorded(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options as they go into the files: plain values, without where the files are."""
    values = {name: value for name, value in vars(arguments).items() if name not in _NOT_RECORDED}
    return {name: str(value) if isinstance(value, Path) else value for name, value in sorted(values.items())}


def export_metrics(arguments: argparse.Namespace, rows: Sequence[Mapping[str, Any]], **figures: Any) -> None:
    """Writes the files that the options ask for; nothing without them.

    JSON: {"environment": ..., "experiment_name": ..., "options": ..., **figures, "rows": [...]}. CSV: one line a row,
    its columns in the order in which the rows bring them, then the experiment, the machine, and the version of every
    package of the environment; what is no plain value (a list, a mapping) is left to the JSON.
    """
    options = recorded(arguments)
    if arguments.json is not None:
        name = arguments.experiment_name
        write_json(arguments.json, {"experiment_name": name, "options": options, **figures, "rows": list(rows)})
    if arguments.csv is not None:
        write_csv(arguments.csv, rows, arguments.experiment_name)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], experiment_name: str | None = None) -> None:
    """Writes rows as `export_metrics` says; floats in full, missing cells empty."""
    where = environment()
    tail = {
        "experiment_name": experiment_name or "",
        **{name: value for name, value in where.items() if not isinstance(value, (Mapping, list, tuple))},
        **{f"version {name}": version for name, version in where["packages"].items()},
    }
    flat = [{name: value for name, value in row.items() if _is_plain(value)} for row in rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*columns, *(name for name in tail if name not in columns)], restval="")
        writer.writeheader()
        writer.writerows({**tail, **row} for row in flat)


def _is_plain(value: Any) -> bool:
    return not isinstance(value, (Mapping, list, tuple, set, frozenset)) and not getattr(value, "shape", ())


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def _not_negative(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, not {text}")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and 0 <= value < 0.5):
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 0.5, not {text}")
    return value
