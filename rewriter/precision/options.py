"""What a user may say about precision beside `precision_mode`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from passes.precision.recipe import FLOAT_TYPES, QUANTIZED_OPS, Recipe
from rewriter import params as parameters
from rewriter.backends.base import Backend
from rewriter.errors import InvalidParameterError

#: How calibration chooses the range of a tensor.
CALIBRATION_METHODS = ("percentile", "entropy", "minmax")
ASYMMETRIC_RULES = ("symmetrise", "refuse")
#: Numbers of INT4 weights that may share a scale, beside 0 for no INT4.
INT4_BLOCKS = (16, 32, 64, 128)
#: Compute capability, as in "SM89", from which on GPUs have FP8 arithmetic; a build for an older one is refused.
_FP8_CAPABILITY = 89


@dataclasses.dataclass(frozen=True)
class PrecisionOptions:
    """Details of the engines' arithmetic. An option that means nothing to the precision mode is refused.

    Attributes:
        float_type: "FP16", "BF16" or "FP32", in either case: what nodes that INT8 or FP8 leaves alone compute in;
            default FP16 (TF-TRT's INT8 mode allowed FP16, too). Only for INT8 and FP8: otherwise `precision_mode` says
            it.
        keep_ops: ONNX operator types that stay as the source has them, for example ["Softmax"].
        keep_nodes: regular expressions; nodes whose name one of them finds stay as they are.
        quantize_ops: operator types that INT8 and FP8 quantise; default Conv, ConvTranspose, MatMul, Gemm, and the
            residual Add that TensorRT fuses with a convolution.
        calibration_method: "percentile" (the largest magnitudes are clipped), "entropy" (least information lost, and
            at most 1 % of the nonzero values; TF-TRT's default) or "minmax" (nothing is clipped). INT8 and FP8 only,
            as `quantize_ops` and `asymmetric`.
        percentile: percentage of values that "percentile" keeps, above 50 and at most 100. With the default it clips
            nothing that matters when inputs are few or values lie on few points, and single outliers when there are
            many.
        asymmetric: trained ranges that symmetric int8 cannot hold exactly: "symmetrise" widens them and reports by how
            much values can change, "refuse" makes them an error.
        int4_block: 0, or how many weights of a MatMul share a scale (16, 32, 64, 128): constant weights of MatMul are
            stored in 4 bits; activations keep their type.
    """

    float_type: str | None = None
    keep_ops: Sequence[str] = ()
    keep_nodes: Sequence[str] = ()
    quantize_ops: Sequence[str] = QUANTIZED_OPS
    calibration_method: str = "percentile"
    percentile: float = 99.999
    asymmetric: str = "symmetrise"
    int4_block: int = 0

    def recipe(self, mode: str) -> Recipe:
        """The recipe of a precision mode with these options.

        Raises:
            InvalidParameterError: an option has a value that is not allowed, or does not go with the mode.
        """
        float_type = self.float_type
        if float_type is not None:
            word = float_type.upper() if isinstance(float_type, str) else float_type
            if word not in FLOAT_TYPES:
                known = ", ".join(FLOAT_TYPES)
                raise InvalidParameterError(f"float_type must be one of {known}, in either case, not {float_type!r}")
            float_type = word
        parameters.check_choice("calibration_method", self.calibration_method, CALIBRATION_METHODS)
        parameters.check_choice("asymmetric", self.asymmetric, ASYMMETRIC_RULES)
        number = isinstance(self.percentile, (int, float)) and not isinstance(self.percentile, bool)
        if not number or not 50 < self.percentile <= 100:
            raise InvalidParameterError(f"percentile must be above 50 and at most 100, not {self.percentile!r}")
        if type(self.int4_block) is not int or self.int4_block not in (0, *INT4_BLOCKS):
            raise InvalidParameterError(
                f"int4_block must be 0 or one of {', '.join(map(str, INT4_BLOCKS))}, not {self.int4_block!r}"
            )
        quantize_ops = parameters.check_names("quantize_ops", self.quantize_ops)
        for op in quantize_ops:
            parameters.check_choice("quantize_ops", op, QUANTIZED_OPS)
        recipe = Recipe.of(
            mode,
            float_type,
            keep_ops=parameters.check_names("keep_ops", self.keep_ops),
            keep_nodes=parameters.check_patterns("keep_nodes", self.keep_nodes),
            quantize_ops=quantize_ops,
            asymmetric=self.asymmetric,
            int4_block=self.int4_block,
        )
        self._check_use(recipe)
        return recipe

    def _check_use(self, recipe: Recipe) -> None:
        """Refuses options that mean nothing beside the others.

        Raises:
            InvalidParameterError: there is one; the message names the first.
        """
        if not recipe.quantizes:
            self._refuse(
                ("float_type", "calibration_method", "percentile", "quantize_ops", "asymmetric"),
                f"goes with precision_mode INT8 or FP8; for {recipe.mode} leave it out",
            )
        if self.calibration_method != "percentile":
            self._refuse(("percentile",), "goes with calibration_method 'percentile'; leave it out")
        if not recipe.changes:
            self._refuse(
                ("keep_ops", "keep_nodes"), f"means nothing for {recipe.mode}, which lowers no node; leave it out"
            )

    def _refuse(self, names: Sequence[str], why: str) -> None:
        """Refuses those of these options that are not at their defaults."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in names:
            value, default = getattr(self, name), defaults[name]
            if (tuple(value) if isinstance(value, list) else value) != default:
                option = "" if name == "quantize_ops" else f" (--{name.replace('_', '-')})"
                raise InvalidParameterError(f"{name}={value!r}{option} {why}")


def narrowed_targets(mode: str, backend: Backend) -> tuple[str, ...]:
    """The targets of the backend that have the arithmetic of a mode; () for all of them.

    Raises:
        InvalidParameterError: none has it.
    """
    if mode != "FP8":
        return ()
    known = backend.default_targets
    usable = tuple(target for target in known if not target_problem(mode, target))
    if known and not usable:
        raise InvalidParameterError(
            f"precision_mode='FP8' needs targets of SM{_FP8_CAPABILITY} or newer, not {', '.join(known)}"
        )
    return usable if usable != known else ()


def target_problem(mode: str, target: str) -> str:
    """Why no engine of a precision mode can be built for a target, as "SM80"; "" when one can."""
    if mode == "FP8" and int(target.removeprefix("SM")) < _FP8_CAPABILITY:
        return f"precision_mode='FP8' needs targets of SM{_FP8_CAPABILITY} or newer, not {target}"
    return ""
