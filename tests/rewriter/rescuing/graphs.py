"""Literal graphs with engines, small enough to read."""


def graph_def(text):
    """A GraphDef out of protobuf's text form."""
    from google.protobuf import text_format
    from tensorflow.core.framework import graph_pb2

    return text_format.Parse(text, graph_pb2.GraphDef())


def function_def(text):
    """A FunctionDef out of protobuf's text form."""
    from google.protobuf import text_format
    from tensorflow.core.framework import function_pb2

    return text_format.Parse(text, function_pb2.FunctionDef())


#: x -> negative of x.
NEGATE = """
signature { name: "E_native_segment"
  input_arg { name: "tensorrtinputph_0" type: DT_FLOAT } output_arg { name: "tensorrtoutputph_0" type: DT_FLOAT } }
node_def { name: "neg" op: "Neg" input: "tensorrtinputph_0" device: "/device:GPU:0"
  attr { key: "T" value { type: DT_FLOAT } } }
ret { key: "tensorrtoutputph_0" value: "neg:y:0" }
"""

#: The same as a segment's own graph.
NEGATE_GRAPH = """
node { name: "TensorRTInputPH_0" op: "Placeholder" attr { key: "dtype" value { type: DT_FLOAT } } }
node { name: "neg" op: "Neg" input: "TensorRTInputPH_0" attr { key: "T" value { type: DT_FLOAT } } }
node { name: "TensorRTOutputPH_0" op: "Identity" input: "neg" attr { key: "T" value { type: DT_FLOAT } } }
"""

ENGINE = """
name: "E" op: "TRTEngineOp" input: "x" input: "^before" device: "/device:GPU:0"
attr { key: "InT" value { list { type: DT_FLOAT } } }
attr { key: "OutT" value { list { type: DT_FLOAT } } }
attr { key: "precision_mode" value { s: "FP16" } }
attr { key: "workspace_size_bytes" value { i: 1000 } }
attr { key: "_use_implicit_batch" value { b: true } }
attr { key: "_output_shapes" value { list { shape { unknown_rank: true } } } }
"""
BY_FUNCTION = 'attr { key: "segment_func" value { func { name: "E_native_segment" } } }'
BY_NAME = 'attr { key: "segment_funcdef_name" value { s: "E_native_segment" } }'


def frozen(engine=ENGINE + BY_FUNCTION, segment=NEGATE):
    """A frozen graph x -> E -> y, as `create_inference_graph` gave one."""
    graph = graph_def(
        f"""
        node {{ name: "x" op: "Placeholder" attr {{ key: "dtype" value {{ type: DT_FLOAT }} }} }}
        node {{ name: "before" op: "NoOp" }}
        node {{ {engine} }}
        node {{ name: "y" op: "Abs" input: "E" attr {{ key: "T" value {{ type: DT_FLOAT }} }} }}
        """
    )
    if segment:
        graph.library.function.append(function_def(segment))
    return graph
