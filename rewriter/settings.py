"""What a converter was told, checked and frozen."""

from __future__ import annotations

import dataclasses
from typing import Any

from passes.partition import PartitionOptions
from passes.precision.recipe import Recipe
from rewriter.backends.base import Backend, BuildOptions
from rewriter.params import (
    PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE,
    PROFILE_STRATEGY_RANGE,
    ConversionParams,
)
from rewriter.precision.options import narrowed_targets
from rewriter.reporting import params_to_json


@dataclasses.dataclass(frozen=True)
class Settings:
    """The arguments of `Converter` that outlive its constructor; see there.

    Attributes:
        params: TF-TRT's nine parameters.
        strategy: one of `supported_profile_strategies()`.
        origin: what is converted.
        tags: of a SavedModel; None for the default.
        signature_keys: of a SavedModel; None is the default one, "*" all of them.
        op_denylist, node_denylist: what stays native.
        cache_full: what a full engine cache does at run time.
        samples, verify, tolerance: how the export is checked.
        allow_double: whether TensorRT may take float64.
    """

    params: ConversionParams
    strategy: str
    origin: Any
    tags: tuple[str, ...] | None
    signature_keys: tuple[str | None, ...]
    op_denylist: tuple[str, ...]
    node_denylist: tuple[str, ...]
    cache_full: str
    samples: list[Any] | None
    allow_double: bool
    verify: bool
    tolerance: float | None

    @property
    def partition(self) -> PartitionOptions:
        """How the graph is cut."""
        return PartitionOptions(minimum_segment_size=self.params.minimum_segment_size)

    @property
    def build_strategy(self) -> str:
        """The strategy in force: static engines (`is_dynamic_op` False) cover batches 1..max_batch_size in any case."""
        return self.strategy if self.params.is_dynamic_op else PROFILE_STRATEGY_RANGE

    @property
    def calibrates_early(self) -> bool:
        """True when `convert()` calibrates: TF-TRT left that to `build()` only for dynamic shapes."""
        return not self.params.is_dynamic_op or self.strategy == PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE

    def build_options(self, backend: Backend) -> BuildOptions:
        """What reaches the builder beside segments and profiles.

        Raises:
            InvalidParameterError: none of the backend's targets has the arithmetic of the precision mode.
        """
        return BuildOptions(
            workspace_bytes=self.params.max_workspace_size_bytes,
            targets=narrowed_targets(self.params.precision_mode, backend),
            tf32=self.params.precision_mode == "TF32",
        )

    def to_json(self, targets: tuple[str, ...], recipe: Recipe) -> dict[str, Any]:
        """The parameters as the report and the artifact keep them.

        Args:
            targets: the GPU architectures built for.
            recipe: the arithmetic of the engines.
        """
        return params_to_json(
            self.params,
            dynamic_shape_profile_strategy=self.strategy,
            op_denylist=self.op_denylist,
            node_denylist=self.node_denylist,
            cache_full=self.cache_full,
            allow_double=self.allow_double,
            targets=targets,
            recipe=recipe.to_json(),
        )
