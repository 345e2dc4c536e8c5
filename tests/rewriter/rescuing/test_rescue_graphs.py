"""Resources, assets and objects leave a literal MetaGraphDef, with paths as constants, as TensorFlow 2.0 wrote it."""

import pytest

from rewriter.errors import SourceError
from rewriter.rescuing.assets import engine_assets, strip_assets
from rewriter.rescuing.objects import strip_objects
from rewriter.rescuing.resources import strip_resources

pytestmark = pytest.mark.tensorflow

META_GRAPH = """
meta_info_def {
  function_aliases { key: "init" value: "i" } function_aliases { key: "user" value: "u" }
}
graph_def {
  node { name: "engine_path" op: "Const" }
  node { name: "words_path" op: "Const" attr { key: "_class" value { list { s: "loc:@handle" s: "loc:@x" } } } }
  node { name: "handle" op: "CreateTRTEngineCacheHandle" }
  node { name: "x" op: "Placeholder" attr { key: "_class" value { list { s: "loc:@call_init" } } } }
  node { name: "call_init" op: "StatefulPartitionedCall" input: "engine_path" input: "handle"
    attr { key: "f" value { func { name: "wrapper" } } } }
  node { name: "call_user" op: "StatefulPartitionedCall" input: "words_path"
    attr { key: "f" value { func { name: "user" } } } }
  node { name: "path_copy" op: "Identity" input: "^call_user" input: "engine_path:0" }
  node { name: "NoOp" op: "NoOp" input: "^call_init" input: "^call_user" }
  node { name: "y" op: "Identity" input: "x" }
  library {
    function { signature { name: "init" } node_def { name: "i" op: "InitializeTRTEngineOp" } }
    function { signature { name: "wrapper" }
      node_def { name: "c" op: "StatefulPartitionedCall" attr { key: "f" value { func { name: "init" } } } } }
    function { signature { name: "direct" } node_def { name: "c" op: "init" } }
    function { signature { name: "branches" } node_def { name: "c" op: "Case"
      attr { key: "b" value { list { func { name: "user" } func { name: "init" } } } } } }
    function { signature { name: "user" } node_def { name: "n" op: "NoOp" } }
    gradient { function_name: "init" gradient_func: "user" }
  }
}
asset_file_def { tensor_info { name: "engine_path:0" } filename: "trt-serialized-engine.TRTEngineOp_0" }
asset_file_def { tensor_info { name: "words_path:0" } filename: "words.txt" }
collection_def { key: "some" value { node_list { value: "handle:0" value: "x" } } }
collection_def { key: "all" value { node_list { value: "call_init" } } }
collection_def { key: "bytes" value { bytes_list { value: "handle" } } }
signature_def { key: "serving_default" value {
  inputs { key: "x" value { name: "x:0" } } outputs { key: "y" value { name: "y:0" } } } }
signature_def { key: "__saved_model_init_op" value {
  outputs { key: "__saved_model_init_op" value { name: "NoOp" } } } }
object_graph_def {
  nodes { children { node_id: 1 local_name: "words" } children { node_id: 2 local_name: "trt_engine_resources" }
    children { node_id: 6 local_name: "f" } dependencies { node_id: 5 local_name: "odd" } dependencies { node_id: 1 }
    saveable_objects { key: "a" value { save_function: 5 restore_function: 6 } }
    saveable_objects { key: "b" value { save_function: 6 restore_function: 6 } }
    user_object { identifier: "_generic_user_object" } }
  nodes { asset { asset_file_def_index: 1 } }
  nodes { children { node_id: 3 local_name: "TRTEngineOp_0" } user_object { identifier: "trackable_dict_wrapper" } }
  nodes { children { node_id: 4 local_name: "_serialized_trt_resource_filename" }
    children { node_id: 5 local_name: "_initialize" } resource { } }
  nodes { asset { } }
  nodes { function { concrete_functions: "init" } }
  nodes { function { concrete_functions: "user" concrete_functions: "wrapper" } }
  nodes { bare_concrete_function { concrete_function_name: "direct" } }
  nodes { captured_tensor { name: "t" concrete_function: "branches" } }
  concrete_functions { key: "init" value { bound_inputs: 4 bound_inputs: 3 } }
  concrete_functions { key: "user" value { bound_inputs: 1 } }
}
"""


@pytest.fixture
def meta_graph(tf):
    from google.protobuf import text_format
    from tensorflow.core.protobuf import meta_graph_pb2

    found = text_format.Parse(META_GRAPH, meta_graph_pb2.MetaGraphDef())
    for asset in found.asset_file_def:
        found.collection_def["saved_model_assets"].any_list.value.add().Pack(asset)
    return found


def test_resources(meta_graph):
    removed = strip_resources(meta_graph, ["engine_path:0"], "it")
    assert removed.nodes == ("call_init", "engine_path", "handle", "path_copy")
    assert removed.functions == ("branches", "direct", "init", "wrapper")
    nodes = {node.name: node for node in meta_graph.graph_def.node}
    assert list(nodes) == ["words_path", "x", "call_user", "NoOp", "y"]
    assert list(nodes["NoOp"].input) == ["^call_user"]
    assert list(nodes["words_path"].attr["_class"].list.s) == [b"loc:@x"]
    assert "_class" not in nodes["x"].attr
    assert [function.signature.name for function in meta_graph.graph_def.library.function] == ["user"]
    assert not meta_graph.graph_def.library.gradient
    assert dict(meta_graph.meta_info_def.function_aliases) == {"user": "u"}
    assert list(meta_graph.collection_def["some"].node_list.value) == ["x"]
    assert "all" not in meta_graph.collection_def
    assert "bytes" in meta_graph.collection_def


def test_assets(meta_graph):
    from tensorflow.core.protobuf import meta_graph_pb2

    engines = engine_assets(meta_graph)
    assert engines.files == ("trt-serialized-engine.TRTEngineOp_0",)
    assert engines.tensors == ("engine_path:0",)
    assert strip_assets(meta_graph, engines) == {1: 0}
    assert [asset.filename for asset in meta_graph.asset_file_def] == ["words.txt"]
    (kept,) = meta_graph.collection_def["saved_model_assets"].any_list.value
    asset = meta_graph_pb2.AssetFileDef()
    assert kept.Unpack(asset)
    assert asset.filename == "words.txt"


def test_engine_file_with_another_name(meta_graph):
    """The engine's own object says which file it is."""
    meta_graph.asset_file_def[0].filename = "renamed"
    assert engine_assets(meta_graph).files == ("renamed",)


def test_assets_that_are_all_engines(meta_graph):
    del meta_graph.asset_file_def[1]
    del meta_graph.collection_def["saved_model_assets"].any_list.value[1]
    assert strip_assets(meta_graph, engine_assets(meta_graph)) == {}
    assert "saved_model_assets" not in meta_graph.collection_def


def test_objects(meta_graph):
    gone = strip_objects(meta_graph, ["init", "wrapper", "direct", "branches"], {1: 0}, "it")
    assert gone == (
        "object 7",
        "object 8",
        "trt_engine_resources",
        "trt_engine_resources/TRTEngineOp_0",
        "trt_engine_resources/TRTEngineOp_0/_initialize",
        "trt_engine_resources/TRTEngineOp_0/_serialized_trt_resource_filename",
    )
    graph = meta_graph.object_graph_def
    root = graph.nodes[0]
    assert [(edge.node_id, edge.local_name) for edge in root.children] == [(1, "words"), (6, "f")]
    assert [edge.node_id for edge in root.dependencies] == [1]
    assert list(root.saveable_objects) == ["b"]
    assert graph.nodes[1].asset.asset_file_def_index == 0
    for place in (2, 3, 4, 5, 7, 8):
        blank = graph.nodes[place]
        assert blank.user_object.identifier == "_generic_user_object"
        assert (blank.user_object.version.producer, blank.user_object.version.min_consumer) == (1, 1)
        assert not blank.children
    assert list(graph.nodes[6].function.concrete_functions) == ["user"]
    assert list(graph.concrete_functions) == ["user"]


def test_no_object_graph(meta_graph):
    """A SavedModel of TF1."""
    meta_graph.ClearField("object_graph_def")
    assert strip_objects(meta_graph, ["init"], {}, "it") == ()


def test_a_node_that_calls_by_its_op(meta_graph):
    meta_graph.graph_def.node.add(name="odd", op="init")
    assert "odd" in strip_resources(meta_graph, ["engine_path:0"], "it").nodes


def test_a_signature_that_needs_what_goes(meta_graph):
    meta_graph.signature_def["serving_default"].inputs["p"].name = "path_copy:0"
    with pytest.raises(SourceError, match=r"signature serving_default of it needs 'p' \(path_copy:0\), which belongs"):
        strip_resources(meta_graph, ["engine_path:0"], "it")
