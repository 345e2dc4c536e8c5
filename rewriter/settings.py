"""What a converter was told, checked and frozen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from passes.partition import PartitionOptions
from passes.precision.recipe import Recipe
from rewriter.backends.base import Backend, BuildOptions
from rewriter.by_signature import ALL_SIGNATURES, by_signature
from rewriter.frontend import load_source
from rewriter.frontend.grappler import GrapplerOptions
from rewriter.frontend.signatures import signature_keys
from rewriter.params import (
    PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE,
    PROFILE_STRATEGY_RANGE,
    ConversionParams,
)
from rewriter.pass_selection import PassSelection
from rewriter.precision.options import narrowed_targets
from rewriter.reports.making import params_to_json
from rewriter.source import Signature, SourceModel
from rewriter.switches import Switches


@dataclasses.dataclass(frozen=True)
class SourceSettings:
    """What is converted, and how it is read and checked.

    Attributes:
        origin: the model.
        tags: of a SavedModel; None for the default.
        signature_keys: of a SavedModel; None is the default one, "*" all of them.
        inputs, outputs: tensor names of a GraphDef; None for what can be found out.
        specialize: sizes for open dimensions, by name or "input:axis".
        tensorflow_islands: whether what ONNX has no word for stays in TensorFlow; False refuses it.
        keep_in_tensorflow: TensorFlow operators that stay there in any case.
        samples, verify, tolerance: how the export is checked; samples may be given for each signature.
    """

    origin: Any
    tags: tuple[str, ...] | None = None
    signature_keys: tuple[str | None, ...] = (None,)
    inputs: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None
    specialize: Mapping[str, int] | None = None
    tensorflow_islands: bool = True
    keep_in_tensorflow: tuple[str, ...] = ()
    samples: list[Any] | Mapping[str, list[Any]] | None = None
    verify: bool = True
    tolerance: float | None = None

    def wanted(self) -> tuple[str | None, ...]:
        """The keys of the signatures that are to be converted; None is the default one.

        Raises:
            InvalidParameterError, SourceError: all are asked for, and the source is no SavedModel or has none.
        """
        if self.signature_keys == (ALL_SIGNATURES,):
            return signature_keys(self.origin, self.tags)
        return self.signature_keys

    def _samples_of(self, key: str | None) -> list[Any] | None:
        """The samples of one signature; the default one takes the only entry of a mapping.

        Raises:
            InvalidParameterError: the mapping names a signature that is not converted.
        """
        if not isinstance(self.samples, Mapping):
            return self.samples
        if key is None and len(self.samples) == 1:
            return next(iter(self.samples.values()))
        by_signature("samples", dict(self.samples), [str(name) for name in self.wanted()])
        return self.samples.get(str(key))

    def read(
        self, key: str | None, check: Callable[[Signature], object] | None, grappler: GrapplerOptions, folder: Path
    ) -> SourceModel:
        """One signature as ONNX.

        Args:
            key: the signature; None for the default one.
            check: called with its inputs as soon as it is read.
            grappler: what TensorFlow's own graph optimiser does.
            folder: where the pieces that stay in TensorFlow are kept.

        Raises:
            ConversionError: see `load_source`.
        """
        return load_source(
            self.origin,
            tags=self.tags,
            signature_key=key,
            inputs=self.inputs,
            outputs=self.outputs,
            specialize=self.specialize,
            samples=self._samples_of(key),
            verify=self.verify,
            tolerance=self.tolerance,
            grappler=grappler,
            islands=self.tensorflow_islands,
            keep_in_tensorflow=self.keep_in_tensorflow,
            island_folder=folder,
            check=check,
        )


@dataclasses.dataclass(frozen=True)
class Settings:
    """The arguments of `Converter` that outlive its constructor; see there.

    Attributes:
        params: TF-TRT's nine parameters.
        strategy: one of `supported_profile_strategies()`.
        source: what is converted.
        selection: which passes run.
        op_denylist, node_denylist: what stays native.
        op_fakelist: what counts as supported although it is not.
        max_engines: how many engines there may be; None for any number.
        cache_full: what a full engine cache does at run time.
        allow_double: whether TensorRT may take float64.
        abort_builds: whether every build is to fail.
        switches: what TF-TRT's environment variables ask for; the fields above hold it already.
    """

    params: ConversionParams
    strategy: str
    source: SourceSettings
    selection: PassSelection = dataclasses.field(default_factory=PassSelection)
    op_denylist: tuple[str, ...] = ()
    node_denylist: tuple[str, ...] = ()
    op_fakelist: tuple[str, ...] = ()
    max_engines: int | None = None
    cache_full: str = "native"
    allow_double: bool = False
    abort_builds: bool = False
    switches: Switches = dataclasses.field(default_factory=Switches)

    def notes(self) -> tuple[str, ...]:
        """What the user should know of what was asked for, a line each."""
        unused = self.params.is_dynamic_op and self.params.max_batch_size != 1
        batch = f"max_batch_size={self.params.max_batch_size} is not used: it is for is_dynamic_op=False"
        return (*self.switches.notes, *([batch] if unused else []))

    @property
    def partition(self) -> PartitionOptions:
        """How the graph is cut."""
        return PartitionOptions(minimum_segment_size=self.params.minimum_segment_size, max_engines=self.max_engines)

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
            self.params._replace(rewriter_config_template=None),
            passes=self.selection.to_json(),
            specialize=None if self.source.specialize is None else dict(self.source.specialize),
            keep_in_tensorflow=self.source.keep_in_tensorflow,
            dynamic_shape_profile_strategy=self.strategy,
            op_denylist=self.op_denylist,
            node_denylist=self.node_denylist,
            op_fakelist=self.op_fakelist,
            max_engines=self.max_engines,
            cache_full=self.cache_full,
            allow_double=self.allow_double,
            targets=targets,
            recipe=recipe.to_json(),
        )
