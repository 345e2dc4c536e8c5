"""The command line: parses arguments, runs one command, turns errors into one line and exit status 2."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import importlib
import logging
import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from rewriter.errors import ConversionError

#: command -> what it does; `rewriter.commands.<command>` implements it.
COMMANDS = {
    "convert": "convert a model and save the artifact",
    "inspect": "show what is in an artifact: engines, native nodes with reasons, sizes",
    "run": "run an artifact on inputs from a file",
    "compare": "compare the source, the native run, emulated precision and TensorRT side by side",
    "bench": "time an artifact: latency percentiles, throughput, load, first call, counters",
    "build": "add engines for more GPUs, and of the TensorRT that is installed here, to an artifact",
    "merge": "put the engines of several artifacts of one model into one",
    "export": "write an artifact for a model server: a Triton repository, or ONNX Runtime's EPContext",
    "rescue": "turn a SavedModel that TF-TRT wrote into one that TensorFlow loads again",
    "doctor": "show what is installed, which TensorRT and GPU there are, and what would be used",
    "demo": "the whole road on a small model, end to end",
}


#: Exit status of a program whose output nobody reads any more, as the shell reports one that the signal ended.
_PIPE_CLOSED = 141


class _Parser(argparse.ArgumentParser):
    """Tells a usage error in one line, as every other error is told; an option is written in full, or it is none."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Refuses here what a command does not know; else the parser of all commands would, which has other help."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        print(f"trt-rewriter: {message} (see {self.prog} -h)", file=sys.stderr)
        raise SystemExit(2)


class _Version(argparse.Action):
    """Prints the version, which is only then looked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(f"{parser.prog} {_version()}")
        raise SystemExit(0)


def make_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands; building it imports no heavy package.

    Args:
        only: the one command whose options are wanted: the modules of the others are not imported. None for all.
    """
    parser = _Parser(
        prog="trt-rewriter",
        description="Converts TensorFlow, Keras and ONNX models into models with TensorRT engines spliced in.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show program's version number and exit")
    parser.add_argument("--debug", action="store_true", help="show tracebacks and debug logs")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, purpose in COMMANDS.items():
        command = commands.add_parser(name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.")
        if only in (None, name):
            importlib.import_module(f"rewriter.commands.{name}").add_arguments(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0 done, 1 a comparison failed or `build` could not make all that was asked for, 2 a usage or conversion error
        (told in one line on stderr), 130 interrupted, 141 nobody reads the output any more (`| head`), which is told by
        nothing else.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    try:
        try:
            return _run(given)
        finally:
            # What cannot be written is told here, and not by Python as it ends.
            if sys.stdout is not None:
                sys.stdout.flush()
    except SystemExit as end:
        # rich ends the program with status 1, which would say that a comparison failed.
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        return _PIPE_CLOSED
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            _drop_output()
            return _PIPE_CLOSED
        _drop_output()
        if "--debug" in given:
            raise
        where = repr(error.filename) if error.filename else "the output cannot be written"
        print(f"trt-rewriter: {where}: {error.strerror or error}", file=sys.stderr)
        return 2


def _run(given: list[str]) -> int:
    """Runs one command; the exit status as `main` has it."""
    # The options before a command take no value, so the first other word is the command.
    arguments = make_parser(next((word for word in given if not word.startswith("-")), "")).parse_args(given)
    logging.basicConfig(level=logging.DEBUG if arguments.debug else logging.ERROR, format="%(name)s: %(message)s")
    if not arguments.debug:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    module = importlib.import_module(f"rewriter.commands.{arguments.command}")
    # Python would walk all of TensorFlow's objects once more before it ends, for most of a second.
    atexit.register(gc.freeze)
    # A plain kill would leave the temporary folder behind; SystemExit lets every `with` end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        status: int = module.run(arguments)
    except (ConversionError, MemoryError) as error:
        if arguments.debug:
            raise
        words = str(error) if isinstance(error, ConversionError) else f"not enough memory: {error}"
        print(f"trt-rewriter: {' '.join(words.split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("trt-rewriter: interrupted", file=sys.stderr)
        return 130
    return status


def _nobody_reads() -> bool:
    """True when standard output is a pipe without a reader; where that cannot be asked, it is taken to be one."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
    except (AttributeError, OSError, ValueError):
        return True
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _drop_output() -> None:
    """Sends what is still to be written nowhere: Python would try once more as it ends, and fail."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, sys.stdout.fileno())
        finally:
            os.close(nowhere)


def _version() -> str:
    import importlib.metadata  # much to import, for a word that is seldom asked for

    try:
        return importlib.metadata.version("trt-rewriter")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())
