"""What Triton's python backend runs: the `TritonPythonModel` of an exported artifact.

It reads these `parameters` of `config.pbtxt`: `signature` (which of the artifact), `strict` ("true": an engine that is
not used is an error), `warmup` ("true": engines, sessions and graphs are made before the model is ready) and `threads`
(of ONNX Runtime; without it several instances on the CPU share its cores).
"""

from __future__ import annotations

import importlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewriter.errors import ConversionError, InputError, InvalidParameterError, MissingDependencyError
from rewriter.export.batching import Inputs, run
from rewriter.export.triton.contents import ARTIFACT_FOLDER
from rewriter.runtime.function import ConvertedFunction
from rewriter.runtime.loading import load

_log = logging.getLogger(__name__)


class TritonPythonModel:
    """One instance of a model; Triton makes it, and calls these methods one after the other."""

    _function: ConvertedFunction
    _max_batch_size: int

    def initialize(self, args: Mapping[str, str]) -> None:
        """Loads the artifact of this version, for the device of this instance.

        Args:
            args: what Triton tells: `model_config` (JSON), `model_repository` (the model's folder), `model_version`,
                `model_instance_kind`, `model_instance_device_id` ...

        Raises:
            ConversionError: as `rewriter.load` raises it, or this Triton cannot hand over arrays of this numpy; Triton
                then says that the model failed to load, and why.
        """
        try:
            _check_arrays(_utils())
            self._load(args)
        except ConversionError as error:
            _log.debug("%s cannot be loaded", args.get("model_name"), exc_info=error)
            # Triton puts the traceback behind the message: what says what to do is the message.
            raise error.with_traceback(None) from error.__cause__

    def _load(self, args: Mapping[str, str]) -> None:
        config = json.loads(args["model_config"])
        given = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        self._max_batch_size = int(config.get("max_batch_size", 0))
        on_cpu = args.get("model_instance_kind") == "CPU"
        folder = Path(args["model_repository"]) / args["model_version"] / ARTIFACT_FOLDER
        self._function = load(
            folder,
            signature=given.get("signature"),
            strict=True if given.get("strict") == "true" else None,
            provider="cpu" if on_cpu else "auto",
            device=0 if on_cpu else int(args.get("model_instance_device_id") or 0),
            threads=int(given["threads"]) if "threads" in given else _share_of_cores(config) if on_cpu else None,
        )
        # Without profiles the warm-up of Triton itself is all: one row, see `find_warmups`.
        if given.get("warmup") == "true" and any(entry.profiles for entry in self._function.engines):
            self._warm_up()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answers requests, computed together where they may be; an error goes to the request that made it."""
        utils = _utils()
        inputs = [self._inputs(request) for request in requests]
        answers = run(inputs, self._max_batch_size, self._function.run)
        return [_response(utils, request, found) for request, found in zip(requests, answers, strict=True)]

    def finalize(self) -> None:
        """Frees sessions and engines."""
        self._function.close()

    def _inputs(self, request: Any) -> dict[str, np.ndarray]:
        arrays = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        scalars = (spec.name for spec in self._function.signature.inputs if spec.shape == ())
        arrays.update((name, arrays[name].reshape(())) for name in scalars if name in arrays)
        return arrays

    def _warm_up(self) -> None:
        try:
            self._function.warmup()
        except InvalidParameterError as error:
            _log.warning("no warm-up: %s", error)


def _response(utils: Any, request: Any, found: Inputs | ConversionError) -> Any:
    if isinstance(found, ConversionError):
        codes = utils.TritonError
        code = codes.INVALID_ARG if isinstance(found, InputError) else codes.INTERNAL
        return utils.InferenceResponse(output_tensors=[], error=codes(str(found), code))
    wanted = set(request.requested_output_names())
    tensors = [utils.Tensor(name, _for_triton(array)) for name, array in found.items() if name in wanted]
    return utils.InferenceResponse(output_tensors=tensors)


def _for_triton(array: np.ndarray) -> np.ndarray:
    """The same, contiguous, for Triton reads memory from the first element on; and with a dimension at least."""
    if not array.ndim:
        return array.reshape(1)
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def _share_of_cores(config: Mapping[str, Any]) -> int | None:
    """Threads of one of several instances on the CPU, which would fight for its cores; None for a single one."""
    groups = [group for group in config.get("instance_group", ()) if group.get("kind") == "KIND_CPU"]
    count = sum(int(group.get("count", 1)) for group in groups)
    return max(1, (os.cpu_count() or 1) // count) if count > 1 else None


def _check_arrays(utils: Any) -> None:
    """Refuses a Triton that cannot hand over arrays of this numpy.

    Servers that were built before numpy 2 misread its arrays without a word: every element is the first one.

    Raises:
        MissingDependencyError: it is such a server.
    """
    sent = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = utils.Tensor.from_dlpack("found", utils.Tensor("sent", sent)).as_numpy()
    if not np.array_equal(found, sent):
        raise MissingDependencyError(
            f"this Triton cannot read arrays of numpy {np.__version__}: pip install 'numpy<2' for the python that it "
            "starts"
        )


def _utils() -> Any:
    """Triton's module, which there is only inside of its python backend."""
    try:
        return importlib.import_module("triton_python_backend_utils")
    except ImportError as error:
        raise MissingDependencyError(
            "this model runs inside of Triton's python backend only: start tritonserver with its repository, or use "
            "rewriter.load"
        ) from error
