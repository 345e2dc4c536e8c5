"""A template in one form, whichever of its three spellings it comes in: proto, dataclass or mapping."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewriter.errors import InvalidParameterError
from rewriter.params import check_names, check_switch

NAME = "rewriter_config_template"
PROTO = "tensorflow.RewriterConfig"
#: Words of a toggle; the first one says nothing. The numbers of the proto are their places.
TOGGLES = ("DEFAULT", "ON", "OFF", "AGGRESSIVE", "EXPERIMENTAL_MLIR", "EXPERIMENTAL_BOTH")
#: Words of the other enumerations of the proto, by number.
ITERATIONS = {0: "DEFAULT_NUM_ITERS", 1: "ONE", 2: "TWO"}
CPU_LAYOUT = {0: "NO_CONVERSION_ON_CPU", 1: "NCHW_TO_NHWC", 2: "NHWC_TO_NCHW"}
MEMORY = {
    0: "DEFAULT_MEM_OPT",
    1: "NO_MEM_OPT",
    2: "MANUAL",
    3: "HEURISTICS",
    4: "SWAPPING_HEURISTICS",
    5: "RECOMPUTATION_HEURISTICS",
    6: "SCHEDULING_HEURISTICS",
}
#: So many known words are listed in a message.
_SHOWN = 8
#: More rounds than this are refused: passes find nothing any more long before.
MAXIMUM_ROUNDS = 10


@dataclasses.dataclass(frozen=True)
class CustomOptimizer:
    """One entry of `RewriterConfig.custom_optimizers`.

    Attributes:
        name: "TensorRTOptimizer", one of this package's passes, or one of Grappler's.
        parameter_map: option -> plain Python value.
    """

    name: str
    parameter_map: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class RewriterConfig:
    """TensorFlow's RewriterConfig without TensorFlow: the same fields and meanings.

    A toggle is one of `TOGGLES` in either case, its number in the proto, True ("ON") or False ("OFF").

    Attributes:
        optimizers: the passes, in order, by Grappler's names or ours; empty for the default list.
        custom_optimizers: more passes, behind the others, with options; `CustomOptimizer`s, or mappings with "name"
            and "parameter_map". A pass of ours that is chosen already gets these options where it stands.
        disable_model_pruning: True leaves "pruning" out.
        disable_meta_optimizer: True leaves all optional passes out.
        meta_optimizer_iterations: rounds of the optional passes: 1 to 10, "ONE", "TWO"; 0 or "DEFAULT_NUM_ITERS" for
            one in TensorFlow's stage and two in ours.
        min_graph_nodes: graphs of fewer nodes get no optional passes; 0 for TensorFlow's default, 4; -1 for none.
        meta_optimizer_timeout_ms: of TensorFlow's stage, in milliseconds; 0 for its default, -1 for no limit.
        fail_on_optimizer_errors: an optimizer of TensorFlow's that fails ends the conversion.
        inter_optimizer_verifier_config, post_optimization_verifier_config: {"structure_verifier": toggle}; graphs in
            TensorFlow's stage are checked after each optimizer, or at the end. Ours are checked always.
        the other ones: as in TensorFlow; `PassSelection.to_json()` tells what each does here, or why nothing.
    """

    layout_optimizer: Any = "DEFAULT"
    constant_folding: Any = "DEFAULT"
    shape_optimization: Any = "DEFAULT"
    remapping: Any = "DEFAULT"
    common_subgraph_elimination: Any = "DEFAULT"
    arithmetic_optimization: Any = "DEFAULT"
    dependency_optimization: Any = "DEFAULT"
    loop_optimization: Any = "DEFAULT"
    function_optimization: Any = "DEFAULT"
    debug_stripper: Any = "DEFAULT"
    scoped_allocator_optimization: Any = "DEFAULT"
    pin_to_host_optimization: Any = "DEFAULT"
    implementation_selector: Any = "DEFAULT"
    auto_mixed_precision: Any = "DEFAULT"
    auto_mixed_precision_mkl: Any = "DEFAULT"
    auto_mixed_precision_onednn_bfloat16: Any = "DEFAULT"
    auto_mixed_precision_cpu: Any = "DEFAULT"
    use_plugin_optimizers: Any = "DEFAULT"
    experimental_conditional_code_motion: Any = "DEFAULT"
    disable_model_pruning: bool = False
    disable_meta_optimizer: bool = False
    disable_tfg_optimizer: bool = False
    experimental_disable_compressed_tensor_optimization: bool = False
    experimental_disable_folding_quantization_emulation: bool = False
    fail_on_optimizer_errors: bool = False
    meta_optimizer_iterations: Any = 0
    min_graph_nodes: int = 0
    meta_optimizer_timeout_ms: int = 0
    cpu_layout_conversion: Any = "NO_CONVERSION_ON_CPU"
    memory_optimization: Any = "DEFAULT_MEM_OPT"
    memory_optimizer_target_node_name_scope: str = ""
    auto_parallel: Mapping[str, Any] | None = None
    scoped_allocator_opts: Mapping[str, Any] | None = None
    optimizers: Sequence[str] = ()
    custom_optimizers: Sequence[Any] = ()
    inter_optimizer_verifier_config: Mapping[str, Any] | None = None
    post_optimization_verifier_config: Mapping[str, Any] | None = None


FIELDS = {field.name: field for field in dataclasses.fields(RewriterConfig)}
#: Toggles are the fields whose default is the toggle that says nothing.
TOGGLE_FIELDS = tuple(name for name, field in FIELDS.items() if field.default == "DEFAULT")
_SWITCHES = tuple(name for name, field in FIELDS.items() if field.default is False)
_WORDS = {"cpu_layout_conversion": CPU_LAYOUT, "memory_optimization": MEMORY}
_MAPPINGS: Mapping[str, tuple[str, ...]] = {
    "auto_parallel": ("enable", "num_replicas"),
    "scoped_allocator_opts": ("enable_op",),
    "inter_optimizer_verifier_config": ("verification_timeout_in_ms", "structure_verifier"),
    "post_optimization_verifier_config": ("verification_timeout_in_ms", "structure_verifier"),
}


def read_config(template: Any) -> RewriterConfig:
    """The template as a checked RewriterConfig: toggles and enumerations as their words, lists as tuples.

    Raises:
        InvalidParameterError: it is nothing of the kind, or a key or value in it is unknown; the message tells of
            known ones.
    """
    kind = getattr(getattr(template, "DESCRIPTOR", None), "full_name", None)
    if kind == PROTO:
        config = RewriterConfig(**_fields_of(template))
    elif isinstance(template, RewriterConfig):
        config = template
    elif isinstance(template, Mapping):
        _check_keys(NAME, template, tuple(FIELDS))
        config = RewriterConfig(**template)
    else:
        hint = ": give its graph_options.rewrite_options" if kind == "tensorflow.ConfigProto" else ""
        raise InvalidParameterError(
            f"{NAME} must be a RewriterConfig (TensorFlow's or trt_rewriter's) or a mapping of its fields, "
            f"not {type(template).__name__}{hint}"
        )
    return _checked(config)


def toggle_word(where: str, value: Any) -> str:
    """A toggle as one of `TOGGLES`.

    Raises:
        InvalidParameterError: it is none.
    """
    if isinstance(value, bool):
        return "ON" if value else "OFF"
    return _word(where, value, dict(enumerate(TOGGLES)), "True, False")


def _checked(config: RewriterConfig) -> RewriterConfig:
    values: dict[str, Any] = {}
    for name in TOGGLE_FIELDS:
        values[name] = toggle_word(f"{NAME}.{name}", getattr(config, name))
    for name in _SWITCHES:
        values[name] = check_switch(f"{NAME}.{name}", getattr(config, name))
    for name, words in _WORDS.items():
        values[name] = _word(f"{NAME}.{name}", getattr(config, name), words)
    for name, keys in _MAPPINGS.items():
        values[name] = _checked_mapping(f"{NAME}.{name}", getattr(config, name), keys)
    values["meta_optimizer_iterations"] = _rounds(config.meta_optimizer_iterations)
    for name in ("min_graph_nodes", "meta_optimizer_timeout_ms"):
        values[name] = _integer(f"{NAME}.{name}", getattr(config, name), -1)
    if not isinstance(config.memory_optimizer_target_node_name_scope, str):
        raise InvalidParameterError(f"{NAME}.memory_optimizer_target_node_name_scope must be a string")
    values["optimizers"] = check_names(f"{NAME}.optimizers", config.optimizers)
    entries = config.custom_optimizers
    if isinstance(entries, (str, Mapping)) or not isinstance(entries, Sequence):
        raise InvalidParameterError(f"{NAME}.custom_optimizers must be a list of CustomOptimizer, not {entries!r}")
    values["custom_optimizers"] = tuple(_custom(entry) for entry in entries)
    return dataclasses.replace(config, **values)


def _checked_mapping(where: str, value: Any, keys: tuple[str, ...]) -> Mapping[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidParameterError(f"{where} must be a mapping with {_list(keys)}, not {value!r}")
    _check_keys(where, value, keys)
    return {key: _INNER[key](f"{where}.{key}", item) for key, item in value.items()}


def _custom(entry: Any) -> CustomOptimizer:
    if isinstance(entry, Mapping):
        _check_keys(f"{NAME}.custom_optimizers", entry, ("name", "parameter_map"))
        entry = CustomOptimizer(entry.get("name", ""), entry.get("parameter_map", {}))
    if not isinstance(entry, CustomOptimizer) or not isinstance(entry.name, str) or not entry.name:
        raise InvalidParameterError(f"{NAME}.custom_optimizers: {entry!r} is no CustomOptimizer with a name")
    if not isinstance(entry.parameter_map, Mapping) or not all(isinstance(key, str) for key in entry.parameter_map):
        raise InvalidParameterError(f"{NAME}.custom_optimizers: the parameter_map of {entry.name!r} is no mapping")
    return entry


def _rounds(value: Any) -> int:
    where = f"{NAME}.meta_optimizer_iterations"
    if isinstance(value, str):
        words = {word: number for number, word in ITERATIONS.items()}
        return words[_word(where, value, ITERATIONS, f"0 to {MAXIMUM_ROUNDS}")]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAXIMUM_ROUNDS:
        known = f"0 to {MAXIMUM_ROUNDS}, {_list(ITERATIONS.values())}"
        raise InvalidParameterError(f"{where} must be one of {known}, not {value!r}")
    return value


def _word(where: str, value: Any, words: Mapping[int, str], more: str = "") -> str:
    if isinstance(value, str) and value.upper() in words.values():
        return value.upper()
    if isinstance(value, int) and not isinstance(value, bool) and value in words:
        return words[value]
    known = _list(words.values()) + (f", {more}" if more else "")
    raise InvalidParameterError(f"{where} must be one of {known}, not {value!r}")


def _integer(where: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidParameterError(f"{where} must be an integer of at least {least}, not {value!r}")
    return value


def _count(where: str, value: Any) -> int:
    return _integer(where, value, 0)


#: What checks each field of the mappings.
_INNER: Mapping[str, Callable[[str, Any], Any]] = {
    "enable": check_switch,
    "num_replicas": _count,
    "enable_op": check_names,
    "verification_timeout_in_ms": _count,
    "structure_verifier": toggle_word,
}


def _check_keys(where: str, given: Mapping[Any, Any], known: tuple[str, ...]) -> None:
    for key in given:
        if key not in known:
            raise InvalidParameterError(f"{where} has no field {key!r}; {known_words(key, known, 'it has')}")


def known_words(word: Any, known: Sequence[str], lead: str, all_of_them: str = "rewriter.RewriterConfig") -> str:
    """What to tell of the known words where one is unknown: those that are like it, else all, of many the first.

    Args:
        word: the unknown one.
        known: the known ones.
        lead: what to put before a list of them.
        all_of_them: where the user finds the rest.
    """
    near = difflib.get_close_matches(str(word), known, 3)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    more = len(known) - _SHOWN
    return f"{lead} {_list(known[:_SHOWN])}" + (f" and {more} more (see {all_of_them})" if more > 0 else "")


def _list(names: Any) -> str:
    return ", ".join(names)


def _fields_of(proto: Any) -> dict[str, Any]:
    """The fields that a RewriterConfig proto sets, as plain values.

    Raises:
        InvalidParameterError: it sets a field of a newer TensorFlow than the ones known here.
    """
    found: dict[str, Any] = {}
    for field, value in proto.ListFields():
        if field.name not in FIELDS:
            raise InvalidParameterError(
                f"{NAME} has no field {field.name!r}; {known_words(field.name, tuple(FIELDS), 'it has')}"
            )
        if field.name == "custom_optimizers":
            found[field.name] = tuple(
                CustomOptimizer(
                    e.name, {k: plain_value(e.name, k, e.parameter_map[k]) for k in sorted(e.parameter_map)}
                )
                for e in value
            )
        elif field.name == "optimizers":
            found[field.name] = tuple(value)
        elif field.message_type is not None:
            found[field.name] = {
                inner.name: item if isinstance(item, (bool, int)) else list(item) for inner, item in value.ListFields()
            }
        else:
            found[field.name] = value
    return found


def plain_value(optimizer: str, key: str, value: Any) -> Any:
    """An AttrValue of a parameter_map in plain Python: str, int, float, bool, or a list of these.

    Raises:
        InvalidParameterError: it is empty, or of another kind.
    """
    kind = value.WhichOneof("value")
    if kind == "s":
        return _text(value.s)
    if kind in ("i", "f", "b"):
        return getattr(value, kind)
    if kind == "list":
        lists = [list(getattr(value.list, name)) for name in ("s", "i", "f", "b") if getattr(value.list, name)]
        if len(lists) <= 1:
            return [_text(item) if isinstance(item, bytes) else item for item in (lists[0] if lists else [])]
    raise InvalidParameterError(
        f"{NAME}: parameter {key!r} of custom optimizer {optimizer!r} must be a string, number, truth value or a list "
        f"of one of these, not {'empty' if kind is None else kind}"
    )


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
