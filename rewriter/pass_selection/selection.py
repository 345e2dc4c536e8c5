"""From a template to what runs: the optimizers of TensorFlow's stage, our passes, and parameters that it overrides."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from passes.base import Pass, Pipeline
from passes.fold_constants import FoldConstants
from passes.pipeline import OPTIONAL_PASSES, REQUIRED_PASSES, SelectedPipeline, default_pipeline
from passes.steps.evaluation import Evaluate
from rewriter.errors import InvalidParameterError
from rewriter.frontend.grappler import MAXIMUM_ITERATIONS, REQUIRED_OPTIMIZER, GrapplerOptions
from rewriter.params import DEFAULT_TRT_CONVERSION_PARAMS, ConversionParams, check_profile_strategy
from rewriter.pass_selection.config import (
    NAME,
    TOGGLE_FIELDS,
    CustomOptimizer,
    RewriterConfig,
    known_words,
    read_config,
)
from rewriter.pass_selection.parameters import make_pass, tensorrt_overrides, tensorrt_strategy
from rewriter.pass_selection.table import (
    BY_NAME,
    BY_TOGGLE,
    DEFAULT_OPTIMIZERS,
    IDLE_FIELDS,
    OPTIMIZERS,
    TENSORRT,
    known_names,
)

#: TensorFlow's own minimum, for templates that name none.
DEFAULT_MIN_GRAPH_NODES = 4
DEFAULT_ROUNDS = 2
_EXPERIMENTS = ("EXPERIMENTAL_MLIR", "EXPERIMENTAL_BOTH")
_NO_MEMORY_WORK = ("DEFAULT_MEM_OPT", "NO_MEM_OPT")


@dataclasses.dataclass(frozen=True)
class PassVerdict:
    """What one entry of a template comes to.

    Attributes:
        name: the optimizer or pass, or the field of the template.
        source: where it was asked for: "optimizers", "custom_optimizers", "default", or "field=value".
        tensorflow: what runs in TensorFlow's stage for it; "" for nothing.
        onnx: what runs in our stage for it; "" for nothing.
        note: what else does its work, or why nothing runs.
    """

    name: str
    source: str
    tensorflow: str = ""
    onnx: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class PassSelection:
    """Which passes run; by default those that run without a template.

    Attributes:
        given: there was a template.
        grappler: TensorFlow's stage, over the frozen graph; ONNX sources have none.
        passes: the optional ONNX passes, in order.
        rounds: how often these are gone through at most.
        minimum_nodes: graphs of fewer nodes get no optional passes; -1 for none.
        overrides: ConversionParams fields that the template sets.
        profile_strategy: the strategy that it asks for; None where it says nothing.
        verdicts: what each entry of the template comes to.
    """

    given: bool = False
    grappler: GrapplerOptions = dataclasses.field(default_factory=GrapplerOptions)
    passes: tuple[Pass, ...] = (FoldConstants(),)
    rounds: int = DEFAULT_ROUNDS
    minimum_nodes: int = -1
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    profile_strategy: str | None = None
    verdicts: tuple[PassVerdict, ...] = ()

    def pipeline(self, evaluate: Evaluate | None = None) -> Pipeline | SelectedPipeline:
        """The ONNX passes.

        Args:
            evaluate: runs a small model, for constant folding; default: ONNX's reference evaluator.
        """
        if not self.given:
            return default_pipeline(evaluate)
        passes = tuple(
            dataclasses.replace(step, evaluate=evaluate) if isinstance(step, FoldConstants) else step
            for step in self.passes
        )
        return SelectedPipeline(passes, self.rounds, self.minimum_nodes)

    def apply(self, params: ConversionParams) -> ConversionParams:
        """The parameters with the template's overrides.

        Raises:
            InvalidParameterError: a parameter is set in both places, and differently.
        """
        for name, value in self.overrides.items():
            given = getattr(params, name)
            same = given.upper() == value if isinstance(given, str) else given == value
            if not same and given != getattr(DEFAULT_TRT_CONVERSION_PARAMS, name):
                raise InvalidParameterError(
                    f"{name} is {given!r}, and {value!r} in the {TENSORRT} of {NAME}: set it in one place"
                )
        return params._replace(**self.overrides)

    def strategy(self, use_dynamic_shape: bool | None, given: str | None) -> str:
        """The profile strategy of TF-TRT's two arguments and of the template.

        Raises:
            InvalidParameterError: a value is not allowed; or the template asks for another strategy than the arguments.
        """
        found = check_profile_strategy(use_dynamic_shape, given)
        if self.profile_strategy is None or self.profile_strategy == found:
            return found
        if use_dynamic_shape is not None or given is not None:
            raise InvalidParameterError(
                f"the profile strategy is {found!r}, and {self.profile_strategy!r} in the {TENSORRT} of {NAME}: set it "
                "in one place"
            )
        return self.profile_strategy

    def to_json(self) -> dict[str, Any]:
        """The selection in plain values, for the report and the manifest."""
        return {
            "given": self.given,
            "tensorflow": {
                "required": {REQUIRED_OPTIMIZER: BY_NAME[REQUIRED_OPTIMIZER].note},
                "optimizers": list(self.grappler.optimizers),
                "iterations": self.grappler.iterations,
            },
            "onnx": {
                "required": dict(REQUIRED_PASSES),
                "optional": [repr(step) for step in self.passes],
                "rounds": self.rounds,
            },
            "minimum_nodes": self.minimum_nodes,
            "overrides": dict(self.overrides),
            "profile_strategy": self.profile_strategy,
            "requested": [dataclasses.asdict(verdict) for verdict in self.verdicts],
        }


def parse_rewriter_config(template: Any = None) -> PassSelection:
    """What a `rewriter_config_template` selects.

    1. `optimizers` are the passes, in order; where it is empty, the default ones.
    2. Toggles: OFF removes an optimizer; ON and AGGRESSIVE add it, at Grappler's own place in the default list and at
       the end of a given one.
    3. `custom_optimizers` come last, in order; a pass of ours that is chosen already takes their options instead.
    4. What the result depends on (`REQUIRED_PASSES`, inlining of functions, TensorRT itself) runs in any case.

    Args:
        template: None, TensorFlow's RewriterConfig proto, our `RewriterConfig`, or a mapping of its fields.

    Raises:
        InvalidParameterError: an unknown name, key or value; the message lists the known ones.
    """
    if template is None:
        return PassSelection()
    config = read_config(template)
    choice = _Choice(config)
    rounds = config.meta_optimizer_iterations
    return PassSelection(
        given=True,
        grappler=_grappler_options(config, choice.names()),
        passes=choice.passes(),
        rounds=rounds or DEFAULT_ROUNDS,
        minimum_nodes=config.min_graph_nodes or DEFAULT_MIN_GRAPH_NODES,
        overrides=tensorrt_overrides(choice.tensorrt),
        profile_strategy=tensorrt_strategy(choice.tensorrt),
        verdicts=tuple(choice.verdicts()),
    )


def _grappler_options(config: RewriterConfig, names: Sequence[str]) -> GrapplerOptions:
    chosen = tuple(name for name in names if name in BY_NAME and BY_NAME[name].grappler)
    # A toggle that is on also says how far its optimizer goes; Grappler is asked for no experiments.
    toggles = tuple(
        (field, word)
        for field in TOGGLE_FIELDS
        if (word := getattr(config, field)) in ("ON", "AGGRESSIVE")
        and field in BY_TOGGLE
        and BY_TOGGLE[field].name in chosen
    )
    between, after = config.inter_optimizer_verifier_config, config.post_optimization_verifier_config
    return GrapplerOptions(
        optimizers=chosen if REQUIRED_OPTIMIZER in chosen else (REQUIRED_OPTIMIZER, *chosen),
        iterations=min(config.meta_optimizer_iterations or 1, MAXIMUM_ITERATIONS),
        minimum_nodes=config.min_graph_nodes or DEFAULT_MIN_GRAPH_NODES,
        toggles=toggles,
        timeout_ms=config.meta_optimizer_timeout_ms,
        fail_on_errors=config.fail_on_optimizer_errors,
        verify_between=_verifies(between),
        verify_after=_verifies(after),
    )


def _verifies(config: Mapping[str, Any] | None) -> bool:
    return config is not None and config.get("structure_verifier", "DEFAULT") not in ("DEFAULT", "OFF")


@dataclasses.dataclass
class _Step:
    """One chosen optimizer or pass."""

    name: str
    source: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def onnx(self) -> str:
        """The optional ONNX pass that it runs; "" for none."""
        return BY_NAME[self.name].onnx if self.name in BY_NAME else self.name if self.name in OPTIONAL_PASSES else ""

    @property
    def tensorflow(self) -> str:
        """What it runs in TensorFlow's stage; "" for nothing."""
        return self.name if self.name in BY_NAME and BY_NAME[self.name].grappler else ""


class _Choice:
    """The steps that a checked template chooses.

    Attributes:
        tensorrt: the entry of TF-TRT's optimizer; an empty one where the template has none.
    """

    def __init__(self, config: RewriterConfig) -> None:
        self._config = config
        self._told: list[PassVerdict] = []
        source = "optimizers" if config.optimizers else "default"
        self._steps = [_Step(_known(name), source) for name in config.optimizers or DEFAULT_OPTIMIZERS]
        for optimizer in OPTIMIZERS:
            self._toggle(optimizer.name, optimizer.toggle)
        found = [entry for entry in config.custom_optimizers if entry.name == TENSORRT]
        if len(found) > 1:
            raise InvalidParameterError(f"{NAME}.custom_optimizers has {len(found)} {TENSORRT}s: keep one")
        self.tensorrt = found[0] if found else CustomOptimizer(TENSORRT)
        for entry in config.custom_optimizers:
            if entry.name != TENSORRT:
                self._custom(entry)
        if config.disable_meta_optimizer:
            for step in self._steps:
                self._told.append(PassVerdict(step.name, step.source, note="left out: disable_meta_optimizer is True"))
            self._steps = []
        self._made = {id(step): make_pass(step.onnx, step.options) for step in self._steps if step.onnx}

    def names(self) -> list[str]:
        """The chosen names, in order."""
        return [step.name for step in self._steps]

    def passes(self) -> tuple[Pass, ...]:
        """The chosen optional ONNX passes, in order."""
        return tuple(self._made.values())

    def verdicts(self) -> list[PassVerdict]:
        """What each entry comes to: the chosen ones in order, then what was left out, then fields without work."""
        found = []
        for step in self._steps:
            if step.name in REQUIRED_PASSES:
                note = f"always runs: {REQUIRED_PASSES[step.name]}"
            else:
                note = BY_NAME[step.name].note if step.name in BY_NAME else ""
            onnx = repr(self._made[id(step)]) if step.onnx else step.name if step.name in REQUIRED_PASSES else ""
            found.append(PassVerdict(step.name, step.source, step.tensorflow, onnx, note))
        if self.tensorrt.parameter_map:
            note = f"TensorRT is always used; sets {', '.join(sorted(self.tensorrt.parameter_map))}"
            found.append(PassVerdict(TENSORRT, "custom_optimizers", note=note))
        return [*found, *self._told, *_idle(self._config)]

    def _toggle(self, name: str, field: str) -> None:
        """Applies the toggle of one optimizer."""
        word = self._word(field)
        if word == "DEFAULT":
            return
        source = f"{field}={getattr(self._config, field)}"
        chosen = [step for step in self._steps if step.name == name]
        if word == "OFF" and name == REQUIRED_OPTIMIZER:
            self._told.append(PassVerdict(name, source, name, note=f"cannot be switched off: {BY_NAME[name].note}"))
        elif word == "OFF":
            self._steps = [step for step in self._steps if step.name != name]
            note = "left out" if chosen else "was not chosen anyway"
            self._told.append(PassVerdict(name, source, note=f"{note}; {BY_NAME[name].note}".rstrip("; ")))
        elif not chosen:
            self._steps.insert(self._place(name), _Step(name, source))
        else:
            self._told.append(
                PassVerdict(name, source, (BY_NAME[name].grappler and name) or "", note="is chosen already")
            )

    def _word(self, field: str) -> str:
        """A toggle's word; other fields that switch an optimizer are told in the same words."""
        value = getattr(self._config, field)
        if field == "disable_model_pruning":
            return "OFF" if value else "DEFAULT"
        if field == "memory_optimization":
            return "DEFAULT" if value in _NO_MEMORY_WORK else "ON"
        if field == "auto_parallel":
            return "ON" if value and value.get("enable") else "DEFAULT"
        return "ON" if value in _EXPERIMENTS else str(value)

    def _place(self, name: str) -> int:
        """Where an optimizer that a toggle adds goes."""
        if self._config.optimizers:
            return len(self._steps)
        order = list(BY_NAME)
        rank = order.index(name)
        return sum(order.index(step.name) < rank for step in self._steps)

    def _custom(self, entry: CustomOptimizer) -> None:
        name = _known(entry.name, TENSORRT)
        if name in OPTIONAL_PASSES:
            chosen = [step for step in self._steps if step.onnx == name]
            for step in chosen:
                step.options = {**step.options, **entry.parameter_map}
            if chosen:
                make_pass(name, entry.parameter_map)
                note = f"its options go to the {name} that is chosen already"
                self._told.append(PassVerdict(name, "custom_optimizers", note=note))
                return
        elif entry.parameter_map:
            given = ", ".join(sorted(entry.parameter_map))
            raise InvalidParameterError(
                f"{NAME}: {name!r} takes no parameters here, not {given}; those with parameters are "
                f"{', '.join((TENSORRT, *OPTIONAL_PASSES))}"
            )
        self._steps.append(_Step(name, "custom_optimizers", entry.parameter_map))


def _known(name: str, *more: str) -> str:
    """The name, when it is one.

    Raises:
        InvalidParameterError: it is not.
    """
    if name not in known_names():
        told = known_words(name, (*more, *known_names()), "known are", "docs/migration.md")
        raise InvalidParameterError(f"{NAME} has no pass {name!r}; {told}")
    return name


def _idle(config: RewriterConfig) -> list[PassVerdict]:
    """Fields that the template sets although they have no work here."""
    default = RewriterConfig()
    return [
        PassVerdict(field, f"{field}={getattr(config, field)}", note=f"has no work: {reason}")
        for field, reason in IDLE_FIELDS.items()
        if getattr(config, field) != getattr(default, field)
    ]
