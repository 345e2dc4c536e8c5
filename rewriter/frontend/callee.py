"""One shape for everything that TensorFlow can call: named flat inputs, named flat outputs."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewriter.errors import SourceError
from rewriter.frontend.noise import quiet, quiet_start
from rewriter.frontend.structure import leaves, name_outputs, rebuild, unique
from rewriter.runtime import tensorflow_island
from rewriter.runtime.other_errors import import_failure


@dataclasses.dataclass(frozen=True)
class Argument:
    """One input: public name, TensorFlow dtype, shape (None entries unknown; None as a whole: unknown rank)."""

    name: str
    dtype: Any
    shape: tuple[int | None, ...] | None


@dataclasses.dataclass(frozen=True)
class Callee:
    """A TensorFlow computation with a flat interface.

    Attributes:
        call: maps tensors, in the order of `inputs`, to public output name -> tensor, in the order of the
            signature; works eagerly and while a graph is traced.
        inputs: what it takes.
        origin: one line for people.
        name: the signature's name.
        batch_is_shared: True when the framework promises that all unknown first dimensions are equal (Keras).
        owner: kept alive with the callee; it holds the variables.
        reference_variables: node name -> value of TF1 reference variables, which freezing cannot read by itself.
        notes: what the user should know of how it was read, a line each; they become notes of the SourceModel.
        with_inputs: makes the callee anew for other input shapes; None where `call` is traced anew at every use.
        symbols: (input name, axis) -> name of every open dimension; None where it is still to be found out.
    """

    call: Callable[[Sequence[Any]], dict[str, Any]]
    inputs: tuple[Argument, ...]
    origin: str
    name: str = "serving_default"
    batch_is_shared: bool = False
    owner: Any = None
    reference_variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    with_inputs: Callable[[Sequence[Argument]], Callee] | None = None
    symbols: Mapping[tuple[str, int], str] | None = None

    def fixed(self, inputs: Sequence[Argument]) -> Callee:
        """This computation for inputs of other (narrower) shapes."""
        if self.with_inputs is not None:
            return dataclasses.replace(self.with_inputs(inputs), notes=self.notes)
        return dataclasses.replace(self, inputs=tuple(inputs))

    def let_go(self) -> None:
        """Ends its life: nothing of the model is kept by it any more, whoever still holds it; `call` raises.

        Its inputs and what it tells of itself stay. For models so large that their memory is needed elsewhere.
        """
        # Frozen fields are set past the class: callers up the stack hold this object, and could not be told.
        object.__setattr__(self, "call", _gone)
        object.__setattr__(self, "owner", None)
        object.__setattr__(self, "with_inputs", None)
        object.__setattr__(self, "reference_variables", {})


def _gone(_tensors: Sequence[Any]) -> dict[str, Any]:
    raise SourceError("the model is not in memory any more")


def import_tensorflow() -> Any:
    """The tensorflow module, imported without its start-up notes and kept off the GPU's memory.

    Raises:
        MissingDependencyError: TensorFlow or tf2onnx is not installed, or cannot be loaded.
    """
    purpose = "converting a TensorFlow model"
    with quiet():
        tensorflow = tensorflow_island.import_tensorflow(purpose)
    import_quietly("tf2onnx", "tf2onnx", purpose)
    return tensorflow


def import_quietly(module: str, package: str, purpose: str) -> Any:
    """A module of the [tf] extra, imported without notes.

    Args:
        module: its name.
        package: its name for people.
        purpose: what needs it.

    Raises:
        MissingDependencyError: it is not installed, or cannot be loaded.
    """
    try:
        with quiet(), quiet_start():
            return importlib.import_module(module)
    except ImportError as error:
        raise import_failure(error, module, package, "tf", purpose) from error


def from_structure(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    origin: str,
    output_names: Sequence[str] | None = None,
    **extra: Any,
) -> Callee:
    """Flattens `function(*args, **kwargs)`, whose TensorSpec leaves are inputs and other leaves constants.

    Raises:
        SourceError: an input is a ragged, sparse or other composite tensor.
    """
    tf = import_tensorflow()
    structure = (tuple(args), dict(kwargs))
    taken: set[str] = set()
    inputs: list[Argument] = []
    for path, leaf in leaves(structure):
        if isinstance(leaf, tf.TensorSpec):
            named = next((str(p) for p in reversed(path[1:]) if isinstance(p, str)), f"input_{len(inputs)}")
            inputs.append(Argument(unique(leaf.name or named, taken), leaf.dtype, static_shape(leaf.shape)))
        elif isinstance(leaf, tf.TypeSpec):
            raise SourceError(
                f"{origin} takes a {type(leaf).__name__.removesuffix('Spec')} input, which ONNX has no word for: "
                "wrap it in a tf.function that takes its components as dense tensors"
            )

    def call(tensors: Sequence[Any]) -> dict[str, Any]:
        feed = iter(tensors)
        arguments, keywords = rebuild(structure, lambda leaf: next(feed) if isinstance(leaf, tf.TensorSpec) else leaf)
        return _checked(name_outputs(function(*arguments, **keywords), output_names), origin)

    return Callee(call, tuple(inputs), origin, **extra)


def _checked(outputs: dict[str, Any], origin: str) -> dict[str, Any]:
    """The outputs as tensors."""
    tf = import_tensorflow()
    if not outputs:
        raise SourceError(f"{origin} returns no tensor: there is nothing to convert")
    for name, value in outputs.items():
        if isinstance(value, (tf.RaggedTensor, tf.SparseTensor, tf.TensorArray)):
            raise SourceError(
                f"{origin} returns a {type(value).__name__} in {name!r}: return its dense components instead"
            )
    return {name: tf.convert_to_tensor(value) for name, value in outputs.items()}


def from_concrete_function(function: Any, origin: str, name: str = "serving_default", **extra: Any) -> Callee:
    """A ConcreteFunction, by its structured signature where it has one."""
    extra.setdefault("reference_variables", reference_variables(function))
    if function.structured_input_signature is not None:
        args, kwargs = function.structured_input_signature
        return from_structure(function, args, kwargs, origin=origin, name=name, owner=function, **extra)
    tf = import_tensorflow()
    captured = {id(t) for t in function.graph.internal_captures}
    specs = [
        tf.TensorSpec(t.shape, t.dtype, name=t.op.name)
        for t in function.inputs
        if id(t) not in captured and t.dtype != tf.resource
    ]
    from rewriter.frontend.control_flow import in_place

    run = in_place(function, extra["reference_variables"])
    return from_structure(run, specs, {}, origin=origin, name=name, owner=function, **extra)


def reference_variables(function: Any) -> dict[str, Any]:
    """Values of the TF1 reference variables (VariableV2) in the graph of a loaded function."""
    tf = import_tensorflow()
    graph = function.graph
    nodes = [op for op in graph.get_operations() if op.type == "VariableV2"]
    if not nodes:
        return {}
    with graph.as_default():
        copies = [tf.identity(op.outputs[0]) for op in nodes]
    values = function.prune([], copies)()
    return {op.name: value.numpy() for op, value in zip(nodes, values, strict=True)}


def from_function(function: Any, samples: Sequence[Any] | None) -> Callee:
    """A tf.function: by its input_signature, its only trace, or traced on the user's samples.

    Raises:
        SourceError: none of the three is there.
    """
    name = getattr(getattr(function, "python_function", None), "__name__", "function")
    origin = f"tf.function {name}"
    if function.input_signature is not None:
        return from_concrete_function(function.get_concrete_function(), origin)
    if samples:
        args, kwargs = specs_of(samples)
        return from_concrete_function(function.get_concrete_function(*args, **kwargs), origin)
    traces = function._list_all_concrete_functions()
    if len(traces) == 1:
        return from_concrete_function(traces[0], origin)
    raise SourceError(
        f"{origin} has no input_signature and {len(traces)} traces: give it an input_signature, pass samples=[...], "
        "or pass function.get_concrete_function(...)"
    )


def specs_of(samples: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments for tracing, from samples: a dimension in which the samples differ is unknown."""
    tf = import_tensorflow()
    rows: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
    for sample in samples:
        if isinstance(sample, Mapping):
            rows.append(({}, dict(sample)))
        else:
            rows.append((dict(enumerate(sample if isinstance(sample, (tuple, list)) else (sample,))), {}))
    if any(row[0].keys() != rows[0][0].keys() or row[1].keys() != rows[0][1].keys() for row in rows):
        raise SourceError("the samples do not all name the same inputs")

    def spec(part: int, key: Any) -> Any:
        tensors = [tf.convert_to_tensor(row[part][key]) for row in rows]
        shapes = [tuple(t.shape) for t in tensors]
        if len({len(s) for s in shapes}) > 1:
            shape = None
        else:
            shape = tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True))
        return tf.TensorSpec(shape, tensors[0].dtype, name=key if isinstance(key, str) else None)

    return tuple(spec(0, key) for key in rows[0][0]), {key: spec(1, key) for key in rows[0][1]}


def static_shape(shape: Any) -> tuple[int | None, ...] | None:
    """A tf.TensorShape as a tuple."""
    return None if shape.rank is None else tuple(shape.as_list())
