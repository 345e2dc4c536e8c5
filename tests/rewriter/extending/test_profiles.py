"""The shapes of new engines: those of the engines that are there, nothing twice and nothing lost."""

import numpy as np
import onnx
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, parser

from passes import model as models
from passes.extract import Extractor
from passes.segments import TensorSpec
from rewriter.artifact.manifest import EngineEntry
from rewriter.backends.base import InputProfile
from rewriter.extending.profiles import UNKNOWN, built_profiles, observed_profiles
from rewriter.runtime.slot_values import profile_of
from rewriter.source import Signature

OP = "TRTEngineOp_000"


def segment(batch):
    proto = parser.parse_model(
        f"""
        <ir_version: 10, opset_import: ["": 20]>
        g (float[{batch}, 4] x) => (float[{batch}, 4] y)
        {{
            a = Relu(x)
            y = Neg(a)
        }}
        """
    )
    names = ["first", "second"]
    for name, node in zip(names, proto.graph.node, strict=True):
        node.name = name
    return Extractor(models.from_proto(onnx.shape_inference.infer_shapes(proto))).extract_nodes((), names, OP)


DYNAMIC, FIXED = segment("batch"), segment("3")


def span(low, best, high):
    return {"x": InputProfile((low, 4), (best, 4), (high, 4))}


def entry(*profiles, of=DYNAMIC, **more):
    facts = {"op": OP, "key": "k", "size": 1, "sha256": "0", "backend": "tensorrt_rtx", "version": "1.7.1"}
    return EngineEntry(**{**facts, "profiles": profiles, "segment_hash": of.content_hash, **more})


def test_those_of_the_only_engine_are_taken():
    profiles = (span(1, 4, 8), span(2, 2, 2))
    assert built_profiles(DYNAMIC, [entry(*profiles)]) == (profiles,)


def test_equal_engines_for_several_gpus_are_one():
    entries = [entry(span(1, 4, 8), targets=(target,)) for target in ("SM80", "SM89", "SM120")]
    assert built_profiles(DYNAMIC, entries) == ((span(1, 4, 8),),)


def test_what_was_built_at_run_time_is_added_where_it_allows_more():
    first, wider, widest, apart = span(1, 4, 8), span(1, 8, 16), span(1, 8, 32), span(64, 64, 64)
    entries = [entry(first), entry(wider), entry(apart), entry(widest), entry(span(2, 3, 4))]
    assert built_profiles(DYNAMIC, entries) == ((first,), (apart,), (widest,))


def test_engines_of_others_and_of_another_segment_say_nothing():
    entries = [entry(span(1, 1, 1), op="TRTEngineOp_001"), entry(span(1, 1, 1), segment_hash="other")]
    assert built_profiles(DYNAMIC, entries) == UNKNOWN
    assert built_profiles(DYNAMIC, [*entries, entry(span(2, 2, 2))]) == ((span(2, 2, 2),),)


def test_a_damaged_engine_still_says_what_it_was_built_for():
    assert built_profiles(DYNAMIC, [entry(span(2, 2, 2), problem="damaged")]) == ((span(2, 2, 2),),)


def test_fixed_shapes_need_no_engine():
    exact = {"x": InputProfile((3, 4), (3, 4), (3, 4))}
    assert built_profiles(FIXED, []) == ((exact,),)
    assert built_profiles(FIXED, [entry(of=FIXED)]) == ((exact,),)


def test_values_are_not_shapes():
    shapes, values = span(1, 4, 8), {"x": InputProfile((1, 4), (4, 4), (8, 4), is_values=True)}
    longer = {"x": InputProfile((1,), (1,), (1,))}
    assert built_profiles(DYNAMIC, [entry(shapes), entry(values), entry(longer)]) == ((shapes,), (values,), (longer,))


sizes = st.lists(st.integers(1, 6), min_size=3, max_size=3).map(sorted)
engines = st.lists(st.lists(sizes.map(lambda s: span(*s)), min_size=1, max_size=3), min_size=1, max_size=5)


@given(engines, st.integers(1, 6))
def test_every_shape_that_some_engine_takes_is_taken_and_nothing_else(lists, batch):
    found = built_profiles(DYNAMIC, [entry(*profiles) for profiles in lists])

    def taken(several):
        return any(profile_of(profiles, {"x": (batch, 4)}, {}) is not None for profiles in several)

    assert found[0] == tuple(lists[0])
    assert set(map(str, found)) <= {str(tuple(profiles)) for profiles in lists}
    assert taken(found) == taken(lists)


@given(engines)
def test_a_second_time_nothing_changes(lists):
    found = built_profiles(DYNAMIC, [entry(*profiles) for profiles in lists])
    assert built_profiles(DYNAMIC, [entry(*profiles) for profiles in found]) == found


def test_sample_inputs_make_profiles_by_the_artifacts_strategy():
    spec = TensorSpec("x", TensorProto.FLOAT, ("batch", 4))
    signature = Signature((spec,), (TensorSpec("y", TensorProto.FLOAT, ("batch", 4)),), "serve")

    def samples():
        for batch in (2, 5):
            yield np.zeros((batch, 4), np.float32)

    def found(**params):
        return observed_profiles(DYNAMIC.model, [DYNAMIC], signature, samples, params)

    assert found() == {OP: ((span(2, 5, 5),),)}
    assert found(dynamic_shape_profile_strategy="Optimal") == {OP: ((span(2, 2, 2), span(5, 5, 5)),)}
    assert found(dynamic_shape_profile_strategy="Optimal", is_dynamic_op=False) == {OP: ((span(2, 5, 5),),)}
