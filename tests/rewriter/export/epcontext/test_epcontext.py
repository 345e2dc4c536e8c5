"""What an export looks like: nodes against the reference, wiring by numbers, ONNX Runtime's own words about it."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from passes import model as models
from rewriter.artifact import load_artifact, save_artifact
from rewriter.errors import ArtifactError, ExportError, InvalidParameterError
from rewriter.export.epcontext import export_epcontext, exporting
from rewriter.export.epcontext.providers import PROVIDERS, Context, context_node, hardware_architecture
from rewriter.runtime.native import open_native

from . import ctx_models as ctx

RTX = "NvTensorRTRTXExecutionProvider"
CLASSIC = "TensorrtExecutionProvider"


@pytest.fixture
def artifact(tmp_path):
    return ctx.make_artifact(tmp_path)


def nodes_of(exported):
    proto = onnx.load(exported.model, load_external_data=False)
    return [node for node in proto.graph.node if node.op_type == "EPContext"]


def test_the_node_of_tensorrt_rtx(artifact, tmp_path):
    exported = export_epcontext(artifact, tmp_path / "out")
    first, second = nodes_of(exported)
    name = f"{RTX}_TRTEngineOp_000_k0"
    assert (first.domain, first.name, list(first.input), list(first.output)) == ("com.microsoft", name, ["x"], ["a"])
    assert (list(second.input), list(second.output)) == (["d", "a"], ["y"])
    assert ctx.attributes_of(first) == {
        "source": ("STRING", RTX),
        "embed_mode": ("INT", 0),
        "ep_cache_context": ("STRING", f"{name}.engine"),
        "main_context": ("INT", 0),
        "partition_name": ("STRING", name),
        "onnx_model_filename": ("STRING", "model.onnx"),
        "hardware_architecture": ("STRING", "80+"),
        "ep_sdk_version": ("STRING", "1.0"),
        "ep_context_op_domain": ("STRING", "com.microsoft"),
        "max_size": ("INT", 0),
    }


def test_the_node_of_tensorrt(tmp_path):
    built = [{"op": op, "key": "k", "backend": "tensorrt", "version": "10.13.0"} for op in (ctx.FIRST, ctx.SECOND)]
    built[1]["targets"] = ()
    exported = export_epcontext(ctx.make_artifact(tmp_path, *built), tmp_path / "out", flavour="tensorrt")
    first, second = nodes_of(exported)
    expected = {
        "source": ("STRING", CLASSIC),
        "embed_mode": ("INT", 0),
        "ep_cache_context": ("STRING", f"{CLASSIC}_TRTEngineOp_000_k.engine"),
        "onnx_model_filename": ("STRING", "model.onnx"),
        "hardware_architecture": ("STRING", "89"),
        "ep_sdk_version": ("STRING", "10.13.0"),
    }
    assert ctx.attributes_of(first) == expected
    assert "hardware_architecture" not in ctx.attributes_of(second)
    assert any("TRTEngineOp_001" in note and "hardware_architecture" in note for note in exported.notes)
    assert any("has tensorrt 10.13.0; no such export was tried with it" in note for note in exported.notes)
    assert not onnx.load(exported.model, load_external_data=False).metadata_props


def test_the_model_around_the_nodes(artifact, tmp_path):
    exported = export_epcontext(artifact, tmp_path / "out")
    onnx.checker.check_model(str(exported.model))
    proto = onnx.load(exported.model, load_external_data=False)
    assert {(o.domain, o.version) for o in proto.opset_import} == {("", 20), ("ai.onnx.ml", 3), ("com.microsoft", 1)}
    assert proto.ir_version <= 13
    assert not proto.functions
    assert [t.name for t in proto.graph.initializer] == ["kept", "shared"], "weights of segments are in the engines"
    places = {e.value for t in proto.graph.initializer for e in t.external_data if e.key == "location"}
    assert places == {"model_ctx.onnx.data"}
    (info,) = proto.metadata_props
    engine = (exported.folder / f"{RTX}_TRTEngineOp_000_k0.engine").read_bytes()
    assert (info.key, info.value) == (f"ep_compatibility_info.{RTX}", engine[:64].hex())
    assert sorted(path.name for path in exported.folder.iterdir()) == list(exported.files)
    assert not [path for path in exported.folder.iterdir() if path.stat().st_nlink > 1 or path.is_symlink()]
    assert any(f"run only in a {RTX} that has tensorrt_rtx 1" in note and "0.3.0" in note for note in exported.notes)
    assert any(note.endswith("session.disable_fallback()") for note in exported.notes)


def test_native_nodes_and_wiring_compute_what_the_artifact_computes(artifact, tmp_path):
    loaded = load_artifact(artifact)
    model = ctx.native_again(export_epcontext(artifact, tmp_path / "out"), loaded)
    x = np.random.default_rng(1).standard_normal((3, ctx.SIZE)).astype(np.float32)
    expected = open_native(loaded.model).run({"x": x})
    np.testing.assert_array_equal(open_native(model).run({"x": x})["y"], expected["y"])


@pytest.mark.parametrize("flavour", PROVIDERS)
def test_onnx_runtime_on_the_cpu_refuses_it(tmp_path, flavour):
    import onnxruntime

    built = [{"op": op, "key": "k", "backend": flavour} for op in (ctx.FIRST, ctx.SECOND)]
    exported = export_epcontext(ctx.make_artifact(tmp_path, *built), tmp_path / "out", flavour=flavour)
    message = f"NOT_IMPLEMENTED : EPContext node generated by '{exported.provider}' is not compatible"
    with pytest.raises(Exception, match=message):  # types are known, or it would fail before
        onnxruntime.InferenceSession(str(exported.model), providers=["CPUExecutionProvider"])


def test_export_again(artifact, tmp_path):
    out = tmp_path / "deep" / "out"
    first = export_epcontext(artifact, out)
    before = {name: (out / name).read_bytes() for name in first.files}
    with pytest.raises(ExportError, match="exists and is not empty"):
        export_epcontext(artifact, out)
    (out / "mine.txt").write_text("x")
    with pytest.raises(ExportError, match=r"no part of an export: mine\.txt"):
        export_epcontext(artifact, out, overwrite=True)
    (out / "mine.txt").unlink()
    assert export_epcontext(artifact, out, overwrite=True).files == first.files
    assert {name: (out / name).read_bytes() for name in first.files} == before
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_outputs_that_are_refused(artifact, tmp_path):
    (tmp_path / "file").write_text("x")
    for folder, words in (
        (artifact, "lies in the artifact"),
        (artifact / "inner", "lies in the artifact"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "below", "a file is in its way"),
        ("", "is empty"),
        (3, "not int"),
        ("a\0b", "cannot be the folder"),
        ("a" * 300, "shorter"),
    ):
        with pytest.raises(ExportError, match=words) as caught:
            export_epcontext(artifact, folder, overwrite=True)
        assert "\n" not in str(caught.value)


def test_a_failure_leaves_nothing(artifact, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(models, "save", fail)
    with pytest.raises(ExportError, match="No space left on device"):
        export_epcontext(artifact, tmp_path / "deep" / "out")
    assert not (tmp_path / "deep").exists()


def test_an_engine_that_changes_while_it_is_copied(artifact, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting.shutil, "copyfile", lambda source, target: target.write_bytes(b"vtrt" * 99))
    with pytest.raises(ExportError, match="has changed while it was copied: export it again"):
        export_epcontext(artifact, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_engines_that_cannot_be_exported(tmp_path):
    first, second = {"op": ctx.FIRST, "key": "a"}, {"op": ctx.SECOND, "key": "b"}
    for number, (built, options, words) in enumerate(
        (
            ([first], {}, r"TRTEngineOp_001 has no tensorrt_rtx engine \(none was built\)"),
            (
                [first, second],
                {"flavour": "tensorrt"},
                r"TRTEngineOp_000 has no tensorrt engine \(it has one of tensorrt_rt",
            ),
            (
                [first, second],
                {"target": "sm120"},
                "TRTEngineOp_000 has no tensorrt_rtx engine for SM120.*SM89.*--targets sm120$",
            ),
            (
                [first, second | {"version": "1.4"}],
                {},
                r"no version .*TRTEngineOp_000: 1\.7\.1\.0; TRTEngineOp_001: 1\.4",
            ),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(ExportError, match=words) as caught:
            export_epcontext(ctx.make_artifact(folder, *built), folder / "out", **options)
        assert "\n" not in str(caught.value)
        assert not (folder / "out").exists()


def test_damage(artifact, tmp_path):
    path = artifact / "engines" / ctx.SECOND / "k1.engine"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1])
    with pytest.raises(ExportError, match=r"TRTEngineOp_001 has no usable tensorrt_rtx engine \(.*damaged"):
        export_epcontext(artifact, tmp_path / "out")
    (artifact / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ArtifactError, match="damaged"):
        export_epcontext(artifact, tmp_path / "out")
    with pytest.raises(ArtifactError, match="no such artifact"):
        export_epcontext(tmp_path / "gone", tmp_path / "out")


def test_several_engines(tmp_path):
    old, new = {"version": "1.4"}, {"version": "1.7", "targets": ("SM89", "SM120")}
    artifact = ctx.make_artifact(
        tmp_path,
        {"op": ctx.FIRST, "key": "a", **old},
        {"op": ctx.FIRST, "key": "b", **new},
        {"op": ctx.FIRST, "key": "c", **new, "profiles": 2},
        {"op": ctx.SECOND, "key": "d", **new},
    )
    exported = export_epcontext(artifact, tmp_path / "out")
    assert [entry.key for entry in exported.engines.values()] == ["b", "d"], "1.4 has not both"
    assert exported.notes[:3] == (
        "exported are the engines of tensorrt_rtx 1.7 for SM89, SM120; target and engine_version (--target, "
        "--engine-version) choose others",
        "not exported: 1 engine of tensorrt_rtx 1.4 for SM89",
        "not exported: 1 engine of tensorrt_rtx 1.7 for SM89, SM120",
    )
    assert len([name for name in exported.files if name.endswith(".engine")]) == 2
    chosen = export_epcontext(artifact, tmp_path / "other", target="12.0")
    assert [entry.key for entry in chosen.engines.values()] == ["b", "d"]
    with pytest.raises(InvalidParameterError, match="not a compute capability"):
        export_epcontext(artifact, tmp_path / "third", target="ada")
    with pytest.raises(ExportError, match=r"TRTEngineOp_001 has no engine of tensorrt_rtx 1\.4; it has those of 1\.7"):
        export_epcontext(artifact, tmp_path / "third", engine_version="1.4")


def test_several_profiles_are_told(tmp_path):
    built = [{"op": ctx.FIRST, "key": "a", "profiles": 2}, {"op": ctx.SECOND, "key": "b"}]
    exported = export_epcontext(ctx.make_artifact(tmp_path, *built), tmp_path / "out")
    assert any(note.startswith("TRTEngineOp_000: several profiles") for note in exported.notes)


def test_wrong_flavour_and_signature(artifact, tmp_path):
    with pytest.raises(InvalidParameterError, match="flavour must be one of 'tensorrt_rtx', 'tensorrt', not 'cuda'"):
        export_epcontext(artifact, tmp_path / "out", flavour="cuda")
    with pytest.raises(InvalidParameterError, match="no signature 'other'"):
        export_epcontext(artifact, tmp_path / "out", signature="other")


def test_an_engine_that_is_too_short(tmp_path):
    scratch = tmp_path / "scratch"
    engines = [ctx.engine(scratch, op, "k") for op in (ctx.FIRST, ctx.SECOND)]
    entry, path = engines[0]
    path.write_bytes(b"vtrt")
    engines[0] = dataclasses.replace(entry, size=4, sha256=hashlib.sha256(b"vtrt").hexdigest()), path
    artifact = save_artifact(tmp_path / "artifact", ctx.part(engines))
    with pytest.raises(ExportError, match="4 bytes, so it is no engine"):
        export_epcontext(artifact, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_second_signature(tmp_path):
    scratch = tmp_path / "scratch"
    engines = [ctx.engine(scratch, ctx.FIRST, "k"), ctx.engine(scratch, ctx.SECOND, "k")]
    other = ctx.part(engines, name="other")
    artifact = save_artifact(tmp_path / "artifact", ctx.part([]), other)
    exported = export_epcontext(artifact, tmp_path / "out", signature="other")
    assert ctx.attributes_of(nodes_of(exported)[0])["onnx_model_filename"] == ("STRING", "model.1.onnx")
    with pytest.raises(ExportError, match="none was built"):
        export_epcontext(artifact, tmp_path / "first")


def test_a_segment_in_a_body(tmp_path):
    """The node lies in the branch; its weight, which the branch took from outside, is gone."""
    body = helper.make_graph(
        [helper.make_node(ctx.FIRST, ["x", "baked"], ["t"], "seg", domain="trt_rewriter")],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
    )
    base = ctx.spliced()
    attributes = list(base.proto.graph.node[0].attribute)
    body.node[0].attribute.extend(attributes)
    other = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["e"], "neg")],
        "else",
        [],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)],
    )
    function = helper.make_function(
        "trt_rewriter", ctx.FIRST, ["x", "baked"], ["t"], [helper.make_node("MatMul", ["x", "baked"], ["t"])],
        [helper.make_opsetid("", 20)],
    )  # fmt: skip
    proto = base.copy_proto()
    del proto.graph.node[:], proto.functions[:], proto.graph.value_info[:]
    proto.functions.append(function)
    proto.graph.initializer.append(helper.make_tensor("flag", TensorProto.BOOL, [], [True]))
    branch = helper.make_node("If", ["flag"], ["i"], "if", then_branch=body, else_branch=other)
    proto.graph.node.extend([branch, helper.make_node("MatMul", ["i", "kept"], ["y"], "mm")])
    model = models.Model(proto, base.weights).with_proto(proto)
    artifact = ctx.make_artifact(tmp_path, {"op": ctx.FIRST, "key": "k"}, model=model)
    exported = export_epcontext(artifact, tmp_path / "out")
    onnx.checker.check_model(str(exported.model))
    written = onnx.load(exported.model, load_external_data=False)
    assert [t.name for t in written.graph.initializer] == ["kept", "flag"]
    (node,) = next(a.g for a in written.graph.node[0].attribute if a.name == "then_branch").node
    assert (node.op_type, list(node.input)) == ("EPContext", ["x"])
    assert any("body of control flow" in note for note in exported.notes)


def test_names_that_differ_from_the_signature_are_told(tmp_path):
    scratch = tmp_path / "scratch"
    part = ctx.part([ctx.engine(scratch, op, "k") for op in (ctx.FIRST, ctx.SECOND)])
    inputs = (dataclasses.replace(part.signature.inputs[0], name="image"),)
    part = dataclasses.replace(part, signature=dataclasses.replace(part.signature, inputs=inputs))
    exported = export_epcontext(save_artifact(tmp_path / "artifact", part), tmp_path / "out")
    assert "the model has other names than the signature: 'x' for 'image'" in exported.notes


@pytest.mark.parametrize(
    ("targets", "text"),
    [(("SM89",), "80+"), (("SM120", "SM80"), "80+"), (("SM75",), "75"), (("SM75", "SM89"), "75"), ((), "")],
)
def test_architecture(targets, text):
    assert hardware_architecture(PROVIDERS["tensorrt_rtx"], targets) == text


def test_engines_of_classic_tensorrt_run_on_one_compute_capability():
    assert [hardware_architecture(PROVIDERS["tensorrt"], t) for t in (("SM89",), ("SM120",), ())] == ["89", "120", ""]


def test_every_attribute_is_in_the_schema_or_known():
    schema = {
        "main_context", "ep_cache_context", "embed_mode", "ep_sdk_version", "onnx_model_filename",
        "hardware_architecture", "partition_name", "source", "notes", "max_size",
    }  # fmt: skip
    for provider in PROVIDERS.values():
        node = context_node(provider, Context("p", "p.engine", "1", ("SM89",), "model.onnx"), ["x"], ["y"])
        assert {a.name for a in node.attribute} - schema <= {"ep_context_op_domain"}
        engine = ctx.attributes_of(node)["ep_cache_context"][1]
        assert engine == Path(engine).name


@pytest.mark.rtx
def test_real_engines(rtx, tmp_path):
    """From a conversion to an export: names and types as `splice` leaves them, engines as TensorRT-RTX makes them."""
    from rewriter import Converter

    rng = np.random.default_rng(0)
    value = helper.make_tensor_value_info
    weight = rng.standard_normal((ctx.SIZE, ctx.SIZE)).astype(np.float32) / 4
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["first_input", "w"], ["m"], "mm"),
            helper.make_node("Relu", ["m"], ["r"], "relu"),
            helper.make_node("Tanh", ["r"], ["between_a"], "tanh"),
            helper.make_node(
                "Scaler", ["between_a"], ["between_f"], "scale", domain="ai.onnx.ml", offset=[0.5], scale=[2.0]
            ),
            helper.make_node("Mul", ["between_f", "between_a"], ["p"], "mul"),
            helper.make_node("Sub", ["p", "between_a"], ["s"], "sub"),
            helper.make_node("Relu", ["s"], ["last_output"], "out"),
        ],
        "g",
        [value("first_input", TensorProto.FLOAT, ["batch", ctx.SIZE])],
        [value("last_output", TensorProto.FLOAT, ["batch", ctx.SIZE])],
        [onnx.numpy_helper.from_array(weight, "w")],
        value_info=[value("between_f", TensorProto.FLOAT, ["batch", ctx.SIZE])],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 3)]
    x = rng.standard_normal((3, ctx.SIZE)).astype(np.float32)
    with Converter(
        model=helper.make_model(graph, opset_imports=imports, ir_version=10), backend=rtx, progress=False
    ) as converter:
        converter.convert()
        converter.build(lambda: iter([{"first_input": x}]))
        converter.save(tmp_path / "artifact")
    exported = export_epcontext(tmp_path / "artifact", tmp_path / "out")
    assert len(exported.engines) == len(nodes_of(exported)) == 2
    loaded = load_artifact(tmp_path / "artifact")
    result = open_native(ctx.native_again(exported, loaded)).run({"first_input": x})
    np.testing.assert_array_equal(
        result["last_output"], open_native(loaded.model).run({"first_input": x})["last_output"]
    )
    (info,) = onnx.load(exported.model).metadata_props
    assert bytes.fromhex(info.value)[:4] == b"vtrt"
    for node in nodes_of(exported):
        content = (exported.folder / ctx.attributes_of(node)["ep_cache_context"][1]).read_bytes()
        for name in (*node.input, *node.output):  # how the provider finds them
            assert name.encode() in content
    import onnxruntime

    with pytest.raises(Exception, match="NOT_IMPLEMENTED : EPContext node generated by"):
        onnxruntime.InferenceSession(str(exported.model), providers=["CPUExecutionProvider"])
