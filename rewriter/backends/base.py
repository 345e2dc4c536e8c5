"""What the rest of the program asks of a TensorRT package, and what it gets back. All values are plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:  # the child process imports this module, and onnx must not come with it
    from passes.model import Model


@dataclasses.dataclass(frozen=True)
class ParserError:
    """One error of TensorRT's ONNX parser.

    Attributes:
        node: index of the outermost main-graph node, -1 when the parser names none.
        name: name of the innermost node, "" when unknown.
        operator: its op_type, "" when unknown.
        code: TensorRT's error code name, for example "UNSUPPORTED_NODE".
        message: the text.
        stage: "check" (all such errors are reported in one pass), "import" (parsing stopped here) or
            "crash" (the parser's process died or hung; `node` is -1).
        function: name of the parser's own function that failed, "" when unknown; a hint at the operator
            when `node` is -1 ("importScatterElements").
        input: name of the graph input that cannot be imported, "" when the error is another one.
    """

    node: int
    name: str
    operator: str
    code: str
    message: str
    stage: str
    function: str = ""
    input: str = ""


@dataclasses.dataclass(frozen=True)
class InputProfile:
    """Shape range of one segment input; for a shape tensor `values` holds ranges of its elements instead.

    Attributes:
        minimum, optimum, maximum: dims (for a shape tensor: its values, flattened).
        is_values: True when the three hold values of a shape tensor.
    """

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]
    is_values: bool = False


#: One optimization profile: ONNX input name -> range.
Profile = Mapping[str, InputProfile]


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """Everything beside the model and its profiles that reaches the builder.

    Attributes:
        workspace_bytes: limit of the WORKSPACE memory pool.
        targets: compute capabilities, as "SM89"; () for the backend's default.
        optimization_level: 0..5; None for TensorRT's default.
        tf32: True lets FP32 layers compute in TF32 (10 bits of mantissa); TensorRT's own default is True.
    """

    workspace_bytes: int = 1 << 30
    targets: tuple[str, ...] = ()
    optimization_level: int | None = None
    tf32: bool = False


@dataclasses.dataclass(frozen=True)
class BuiltEngine:
    """A serialised engine in a file.

    Attributes:
        path: the file with the raw engine bytes (the caller owns it).
        size: bytes.
        sha256: hex digest of the file.
        layers: layers of TensorRT's network before fusion.
        seconds: wall time of the build.
    """

    path: Path
    size: int
    sha256: str
    layers: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class BuildFailure:
    """Why there is no engine: a value, not an exception.

    Attributes:
        kind: "unsupported" (deny nodes and try again), "workspace", "memory", "cancelled", "profile", "gpu" (this
            TensorRT builds such a model only where there is a GPU), "crash", or "fault" (this version of TensorRT is
            known to compute it wrongly, so it was not asked).
        reason: one line for people, the builder's own words included.
        log: all error lines of TensorRT's logger.
    """

    kind: str
    reason: str
    log: tuple[str, ...] = ()


#: Called with (phase, steps done, steps in all) while an engine is built; returning False cancels the build.
Progress = Callable[[str, int, int], bool]


@runtime_checkable
class Backend(Protocol):
    """One TensorRT package. Implementations run TensorRT in a child process, so a crash is an answer, not an end."""

    @property
    def flavour(self) -> str:
        """The package: "tensorrt_rtx" or "tensorrt"."""
        ...

    @property
    def version(self) -> str:
        """Its version, for example "1.7.1.116"."""
        ...

    @property
    def default_targets(self) -> tuple[str, ...]:
        """Compute capabilities that are built for when none are asked for."""
        ...

    def parse(self, model: Model) -> tuple[ParserError, ...]:
        """All errors of parsing `model` as it is; () means that the parser takes all of it."""
        ...

    def build(
        self,
        model: Model,
        profiles: tuple[Profile, ...],
        options: BuildOptions,
        output: Path,
        progress: Progress | None = None,
    ) -> BuiltEngine | BuildFailure:
        """Builds `model` and writes the engine to `output`."""
        ...

    def close(self) -> None:
        """Ends the child process; harmless when repeated."""
        ...
