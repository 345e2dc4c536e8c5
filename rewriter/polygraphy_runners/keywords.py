"""One flat list of conversion parameters, as a command line has it, and the arguments of `Converter` that they mean."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from rewriter.commands.precision_options import accuracy_target
from rewriter.errors import InvalidParameterError
from rewriter.params import DEFAULT_TRT_CONVERSION_PARAMS, ConversionParams
from rewriter.precision.options import PrecisionOptions

#: Short names, as the command line has them -> those of `Converter`.
SHORT = {"tags": "input_saved_model_tags", "signature": "input_saved_model_signature_key"}
#: The accuracy guard, as the command line has it.
_GUARD = ("max_rel_diff", "accuracy_inputs")
_PRECISION = tuple(field.name for field in dataclasses.fields(PrecisionOptions))
#: What the source is said with, and what has no meaning for one comparison.
_TAKEN = ("self", "input_saved_model_dir", "model", "backend")


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Refuses names that are none.

    Raises:
        InvalidParameterError: it names the first, and what is like it.
    """
    known = _known()
    for name in parameters:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else f": it takes {', '.join(sorted(known))}"
            raise InvalidParameterError(f"ConvertModel has no parameter {name!r}{hint}")


def converter_keywords(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `Converter`.

    Args:
        parameters: arguments of `Converter`, fields of `ConversionParams` and of `PrecisionOptions`, and `SHORT` names;
            `rewriter_config_template` may be the path of a file, as `trt-rewriter convert` takes it, and so are
            `max_rel_diff` and `accuracy_inputs`, which mean an `accuracy`.

    Raises:
        InvalidParameterError: a name that is none of them, more than one signature, or half an accuracy guard.
    """
    check_parameters(parameters)
    rest = {SHORT.get(name, name): value for name, value in parameters.items()}
    base = rest.pop("conversion_params", None) or DEFAULT_TRT_CONVERSION_PARAMS
    fields = {name: rest.pop(name) for name in ConversionParams._fields if name in rest}
    template = fields.get("rewriter_config_template")
    if isinstance(template, str):
        fields["rewriter_config_template"] = _read_template(template)
    details = {name: rest.pop(name) for name in _PRECISION if name in rest}
    precision = rest.pop("precision", None) or PrecisionOptions()
    guard = {name: rest.pop(name, None) for name in _GUARD}
    if any(value is not None for value in guard.values()):
        rest["accuracy"] = accuracy_target(argparse.Namespace(**guard))
    key = rest.get("input_saved_model_signature_key")
    if key is not None and (not isinstance(key, str) or key == "*" or "," in key):
        raise InvalidParameterError(f"signature must be one key, not {key!r}: a runner runs one signature")
    return {
        **rest,
        "conversion_params": base._replace(**fields),
        "precision": dataclasses.replace(precision, **details),
    }


def _known() -> set[str]:
    from rewriter.converter import Converter

    names = set(inspect.signature(Converter.__init__).parameters) - set(_TAKEN)
    return names | set(ConversionParams._fields) | set(_PRECISION) | set(SHORT) | set(_GUARD)


def _read_template(path: str) -> Any:
    """A RewriterConfig out of a file, read as `trt-rewriter convert` reads it."""
    from rewriter.commands.options import add_conversion_options, conversion_arguments

    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_conversion_options(parser)
    arguments = parser.parse_args([f"--rewriter-config-template={path}"])
    return conversion_arguments(arguments)["conversion_params"].rewriter_config_template
