"""Models of which no EPContext model can be made."""

import pytest
from onnx import TensorProto, helper

from passes import model as models
from rewriter.errors import ExportError
from rewriter.export.epcontext import export_epcontext

from . import ctx_models as ctx


def changed(change):
    """The spliced model after `change(proto)`."""
    model = ctx.spliced()
    proto = model.copy_proto()
    change(proto)
    return models.Model(proto, model.weights)


def drop_functions(proto):
    del proto.functions[:]


def rename(proto):
    proto.graph.node[0].output[0] = proto.graph.node[1].input[0] = proto.graph.node[4].input[1] = "renamed"


def forget_type(proto):
    for function in proto.functions:
        del function.value_info[:]


def make_double(proto):
    proto.functions[0].value_info[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def forbid(proto):
    proto.graph.node[0].attribute.append(helper.make_attribute("not_runnable", "a fake list"))


def lose_attribute(proto):
    del proto.graph.node[0].attribute[:]


def make_native(proto):
    del proto.graph.node[4], proto.graph.node[0]
    proto.graph.node[0].input[0], proto.graph.node[-1].output[0] = "x", "y"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_functions, "lost its function"),
        (rename, "'renamed' has another name in the engine"),
        (forget_type, "the type of 'a' is not known"),
        (make_double, "'a' is double"),
        (forbid, "must not run as an engine"),
        (lose_attribute, "lacks the attribute"),
        (make_native, "no engine node"),
    ],
)
def test_models_that_cannot_be_exported(tmp_path, change, words):
    artifact = ctx.make_artifact(tmp_path, model=changed(change))
    with pytest.raises(ExportError, match=words) as caught:
        export_epcontext(artifact, tmp_path / "out")
    assert str(artifact) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_parts_in_tensorflow_cannot_be_exported(tmp_path):
    from passes.island_node import ISLAND_DOMAIN, IslandAttributes, make_island

    source = tmp_path / "saved"
    source.mkdir()
    (source / "saved_model.pb").write_bytes(b"x")

    def add(proto):
        island = make_island("TFIsland_000", ("x",), ("unused",), IslandAttributes(str(source), ("x",), ("o",)))
        proto.graph.node.append(island)
        proto.opset_import.add(domain=ISLAND_DOMAIN, version=1)

    artifact = ctx.make_artifact(tmp_path, model=changed(add))
    with pytest.raises(ExportError, match=r"1 part of the model \(TFIsland_000\) stays in TensorFlow"):
        export_epcontext(artifact, tmp_path / "out")
