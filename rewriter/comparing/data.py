"""The inputs of a comparison, one sample at a time: made up, from files, or from the user's own script."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewriter.errors import InputError, InvalidParameterError

if TYPE_CHECKING:
    import numpy as np

    from rewriter.artifact.manifest import EngineEntry
    from rewriter.source import Signature

#: The function of a data script that is called where no other is named, as in Polygraphy's `--data-loader-script`.
SCRIPT_FUNCTION = "load_data"

Sample = Mapping[str, Any]


def bound_samples(signature: Signature, samples: Iterable[Any], what: str) -> Iterator[dict[str, np.ndarray]]:
    """Each sample as arrays by public name, checked against the signature.

    Args:
        signature: the inputs.
        samples: dicts by name; or, where the signature allows it, tuples or arrays (see `rewriter.runtime.inputs`).
        what: where they come from, for messages.

    Raises:
        InputError: a sample does not fit, and which one; or there is none.
    """
    from rewriter.runtime.inputs import bind, to_array

    number = -1
    for number, sample in enumerate(samples):
        try:
            values = bind(signature, (sample,), {})
            arrays = {spec.name: to_array(values[spec.name], spec) for spec in signature.inputs}
        except InputError as error:
            raise InputError(f"sample {number} of {what}: {error}") from error
        yield arrays
    if number < 0:
        raise InputError(f"there are no inputs in {what}: give at least one sample")


def made_up(
    signature: Signature, shapes: Mapping[str, Any], known: Sequence[Sample], engines: Sequence[EngineEntry] = ()
) -> Callable[[], Iterator[dict[str, np.ndarray]]]:
    """Made-up inputs: what the source takes, or its values in the wanted shapes.

    Args:
        signature: the inputs of the artifact.
        shapes: input name -> shapes; {} leaves them open.
        known: samples that the source is known to take; may be none.
        engines: of the artifact: what their profiles are tuned for fixes shapes that nothing else does.

    Raises:
        InvalidParameterError: shapes that do not fit, or a dimension that nothing fixes.
    """
    from rewriter.shapes.sampling import shaped_input_fn

    if known and not shapes and all(_has_shapes_of(signature, sample) for sample in known):
        return lambda: iter([dict(sample) for sample in known])
    try:
        return shaped_input_fn(signature, shapes, known)
    except InvalidParameterError:
        if shapes or not engines:
            raise
        tuned = _tuned(signature, engines)
        if not tuned:
            raise
    return lambda: iter(tuned)


def _tuned(signature: Signature, engines: Sequence[EngineEntry]) -> list[dict[str, np.ndarray]]:
    """Made-up inputs of the shapes that the engines are tuned for; [] where these leave a dimension open."""
    from rewriter.runtime.warmup import warmup_samples

    try:
        return warmup_samples(signature, engines, None)
    except InvalidParameterError:  # the engines do not read that input themselves
        return []


def saved_inputs(path: str) -> list[Sample]:
    """The inputs of a file that Polygraphy's `--save-inputs` wrote: a list of dicts, in its JSON.

    Raises:
        InputError: it cannot be read, or is something else.
        MissingDependencyError: Polygraphy is not installed.
    """
    from rewriter.runtime.other_errors import first_line, import_failure

    try:
        from polygraphy.exception import PolygraphyException
        from polygraphy.json import from_json
    except ImportError as error:
        raise import_failure(error, "polygraphy", "Polygraphy", "compare", f"reading {path!r}") from error
    try:
        text = Path(path).read_text("utf-8")
        json.loads(text)  # Polygraphy logs a failure of this before it raises it
        found = from_json(text)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, PolygraphyException) as error:
        raise InputError(f"cannot read the inputs {path!r} as Polygraphy saves them: {first_line(error)}") from error
    if not isinstance(found, list) or not found or not all(isinstance(sample, Mapping) for sample in found):
        raise InputError(f"{path!r} holds no inputs: Polygraphy's --save-inputs writes a list of dicts")
    return [dict(sample) for sample in found]


def script_samples(text: str) -> Iterator[Any]:
    """What a function of the user's script yields.

    Args:
        text: "FILE.py" or "FILE.py:function"; without a name `load_data` is called. It takes no arguments.

    Raises:
        InputError: there is no such file or function, or it fails; the message has the user's own error.
    """
    path, name = _split(text)
    from rewriter.runtime.inputs import iterate_samples

    try:
        function = getattr(_run_script(path), name, None)
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise InputError(f"the data script {path} failed: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise InputError(
            f"the data script {path} has no function {name!r}: define it, or name another one as {path}:FUNCTION"
        )
    try:
        yield from iterate_samples(function())
    except InputError as error:
        raise InputError(f"{name} of the data script {path}: {str(error).replace('input_fn', name)}") from error
    except (Exception, SystemExit) as error:  # likewise
        raise InputError(f"{name} of the data script {path} failed: {type(error).__name__}: {error}") from error


def check_script(text: str) -> None:
    """Refuses a data script that is not there, before anything else is done.

    Raises:
        InputError: there is no such file.
    """
    _split(text)


def _split(text: str) -> tuple[Path, str]:
    """The file and the function; a colon elsewhere in the path marks no function."""
    path, colon, name = text.rpartition(":")
    if not colon or not name.isidentifier() or not path.endswith(".py"):
        path, name = text, SCRIPT_FUNCTION
    if not Path(path).is_file():
        raise InputError(f"there is no data script {path!r}: write FILE.py or FILE.py:FUNCTION")
    return Path(path), name


def _run_script(path: Path) -> Any:
    """The script as a module; what lies beside it can be imported."""
    spec = importlib.util.spec_from_file_location("trt_rewriter_data_script", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is no Python file: a data script is called FILE.py")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module


def _has_shapes_of(signature: Signature, sample: Sample) -> bool:
    """False where the conversion fixed a dimension (`--specialize`) that a sample of the source has otherwise."""
    for spec in signature.inputs:
        shape = getattr(sample.get(spec.name), "shape", None)
        for dim, size in zip(spec.shape or (), shape or (), strict=False):
            if isinstance(dim, int) and dim != size:
                return False
    return True
