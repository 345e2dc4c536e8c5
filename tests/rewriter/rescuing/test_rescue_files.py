"""Where a rescue reads and writes: refused destinations, nothing half written, damaged sources, the command."""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from rewriter.commands import rescue as command
from rewriter.errors import InvalidParameterError, MissingDependencyError, SourceError
from rewriter.frontend import load_source
from rewriter.rescuing import needs_rescue, rescue, writing
from rewriter.rescuing.reading import mentions_engines
from rewriter.rescuing.spellings import TRT_OPS
from rewriter.rescuing.temporary import TemporaryRescue
from tests.rewriter.rescuing import old_models
from tests.rewriter.rescuing.old_models import Style, convert


@pytest.fixture(scope="session")
def original(tf, tmp_path_factory):
    path = tmp_path_factory.mktemp("original") / "cnn"
    old_models.save_cnn(tf, path)
    return path


@pytest.fixture(scope="session")
def saved(tf, original, tmp_path_factory):
    """A model of TF-TRT; tests that change it take a copy."""
    return convert(tf, original, tmp_path_factory.mktemp("old") / "old", Style(precision="FP16", engines=2))


@pytest.fixture
def old(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "old")
    return tmp_path / "old"


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def fail(source, place, **_):
    raise OSError(28, "No space left on device", str(place))


def edit(path, change):
    """Changes the only MetaGraphDef of a SavedModel."""
    from tensorflow.core.protobuf import saved_model_pb2

    file = path / "saved_model.pb"
    message = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    change(message.meta_graphs[0])
    file.write_bytes(message.SerializeToString())


# --- Destinations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda p: p / "old", "is, lies in or holds the source"),
        (lambda p: p / "old" / "new", "is, lies in or holds the source"),
        (lambda p: p, "is, lies in or holds the source"),
        (lambda p: p / "file", "is a file: choose another directory"),
        (lambda p: p / "file" / "new", "is no directory that can be written"),
        (lambda p: p / "full", r"exists and is not empty: .* \(overwrite=True, --overwrite\)"),
        (lambda p: "", "destination must be the path of a folder, not ''"),
        (lambda p: 5, "destination must be the path of a folder, not 5"),
        (lambda p: "a\0b", "destination cannot be a path: it holds a null byte"),
    ],
)
def test_refused_destinations(tmp_path, make, match):
    """Told without TensorFlow."""
    (tmp_path / "old").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    before = listing(tmp_path)
    with pytest.raises(InvalidParameterError, match=match):
        rescue(tmp_path / "old", make(tmp_path))
    assert listing(tmp_path) == before


@pytest.mark.parametrize("value", ["no", 1, None])
def test_overwrite_is_true_or_false(tmp_path, value):
    with pytest.raises(InvalidParameterError, match=f"overwrite must be True or False, not {value!r}"):
        rescue(tmp_path / "old", tmp_path / "new", overwrite=value)


@pytest.mark.parametrize("names", [["mine.txt"], ["saved_model.pb", "mine.txt"], ["variables/x"]])
def test_what_is_never_overwritten(tmp_path, names):
    (tmp_path / "old").mkdir()
    for name in names:
        (tmp_path / "new" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "new" / name).write_text("")
    with pytest.raises(InvalidParameterError, match="is not overwritten, for it is no SavedModel and nothing else"):
        rescue(tmp_path / "old", tmp_path / "new", overwrite=True)


@pytest.mark.tensorflow
def test_overwriting_a_saved_model(old, tmp_path):
    (tmp_path / "new" / "assets").mkdir(parents=True)
    (tmp_path / "new" / "saved_model.pb").write_text("")
    (tmp_path / "new" / "assets" / "gone.txt").write_text("")
    with pytest.raises(InvalidParameterError, match="exists and is not empty"):
        rescue(old, tmp_path / "new")
    rescue(old, tmp_path / "new", overwrite=True)
    assert listing(tmp_path / "new") == [
        "assets", "saved_model.pb", "variables", "variables/variables.data-00000-of-00001", "variables/variables.index"
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]


@pytest.mark.tensorflow
def test_parents_are_made_and_other_files_taken_over(old, tmp_path):
    (old / "assets.extra").mkdir()
    (old / "assets.extra" / "warmup").write_text("w")
    (old / "keras_metadata.pb").write_text("k")
    rescue(old, tmp_path / "a" / "b" / "new")
    new = tmp_path / "a" / "b" / "new"
    assert (new / "assets.extra" / "warmup").read_text() == "w"
    assert (new / "keras_metadata.pb").read_text() == "k"
    (tmp_path / "plain").mkdir()
    assert new.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.tensorflow
@pytest.mark.parametrize("there", [False, True])
def test_failure_while_writing(old, tmp_path, monkeypatch, there):
    """The destination is afterwards what it was, and nothing is left beside it."""
    if there:
        (tmp_path / "a" / "new").mkdir(parents=True)
        (tmp_path / "a" / "new" / "saved_model.pb").write_text("mine")
    before = listing(tmp_path)

    monkeypatch.setattr(shutil, "copytree", fail)
    with pytest.raises(SourceError, match=r"cannot write the rescued model .*new: No space left on device \("):
        rescue(old, tmp_path / "a" / "new", overwrite=True)
    assert listing(tmp_path) == before
    assert not there or (tmp_path / "a" / "new" / "saved_model.pb").read_text() == "mine"


@pytest.mark.tensorflow
def test_an_interrupt_while_replacing_a_model(old, tmp_path, monkeypatch):
    """The model that was there is there again, whenever the user gives up."""
    rescue(old, tmp_path / "new")
    (tmp_path / "new" / "variables" / "mine").write_text("mine")
    rename, calls = Path.rename, []

    def interrupted(path, to):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(path, to)

    before = listing(tmp_path)
    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rescue(old, tmp_path / "new", overwrite=True)
    assert listing(tmp_path) == before


@pytest.mark.tensorflow
def test_too_large_for_one_message(old, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "_LARGEST", 100)
    with pytest.raises(SourceError, match="is too large to be written as one message"):
        rescue(old, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.tensorflow
def test_no_room_for_a_temporary_rescue(old, tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(SourceError, match=r"needs a temporary folder, which cannot be written .* in TMPDIR"):
        TemporaryRescue(old)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr(shutil, "copytree", fail)
    monkeypatch.setattr("pathlib.Path.symlink_to", fail)
    with pytest.raises(SourceError, match=r"No space left on device"):
        TemporaryRescue(old)
    assert listing(tmp_path / "scratch") == []


@pytest.mark.tensorflow
def test_temporary_rescue_without_links(old, monkeypatch):
    """A system, or a file system, without symbolic links: copies."""

    def refuse(self, *_, **__):
        raise OSError("no links here")

    (old / "keras_metadata.pb").write_text("k")
    monkeypatch.setattr("pathlib.Path.symlink_to", refuse)
    rescued = TemporaryRescue(old)
    assert (rescued.path / "keras_metadata.pb").read_text() == "k"
    assert (rescued.path / "variables" / "variables.index").is_file()
    assert not (rescued.path / "variables").is_symlink()


# --- Sources ----------------------------------------------------------------------------------------------------------


@pytest.mark.tensorflow
def test_models_that_need_no_rescue(tf, original, tmp_path):
    assert not needs_rescue(original)
    with pytest.raises(SourceError, match="cnn holds nothing of TF-TRT, so it needs no rescue: use it as it is"):
        rescue(original, tmp_path / "new")
    assert listing(tmp_path) == []


@pytest.mark.parametrize("op", sorted(TRT_OPS))
def test_every_op_is_seen_in_the_bytes(tmp_path, op):
    (tmp_path / "saved_model.pb").write_bytes(b"\x12" + op.encode() + b"\x00")
    assert mentions_engines(tmp_path)


def test_a_look_without_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "saved_model.pb").write_bytes(b"\n\x03abc")
    assert not needs_rescue(tmp_path / "plain")
    assert not needs_rescue(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "saved_model.pb").write_bytes(b"")
    assert not needs_rescue(tmp_path / "empty")
    (tmp_path / "plain" / "saved_model.pb").write_bytes(b"\x12\x0bTRTEngineOp")
    with pytest.raises(MissingDependencyError, match=r"reading a SavedModel of TF-TRT needs TensorFlow"):
        needs_rescue(tmp_path / "plain")


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "is no SavedModel: it holds no saved_model.pb"),
        (b"\xff\xff TRTEngineOp", "is damaged"),
        (b"", r"is damaged \(it holds no graph\)"),
        ("cut", "is damaged"),
    ],
)
def test_damaged_files(tf, old, tmp_path, content, match):
    file = old / "saved_model.pb"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-100] if content == "cut" else content)
    assert not needs_rescue(old)
    with pytest.raises(SourceError, match=match):
        rescue(old, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.tensorflow
def test_no_such_source(tf, tmp_path):
    with pytest.raises(SourceError, match=r"no such directory: .*none"):
        rescue(tmp_path / "none", tmp_path / "new")
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match="file is a file"):
        rescue(tmp_path / "file", tmp_path / "new")
    (tmp_path / "chunks").mkdir()
    (tmp_path / "chunks" / "saved_model.cpb").write_text("")
    with pytest.raises(SourceError, match="is cut into chunks"):
        rescue(tmp_path / "chunks", tmp_path / "new")


@pytest.mark.tensorflow
def test_text_models(tf, old, tmp_path):
    """saved_model.pbtxt is written as saved_model.pb."""
    from google.protobuf import text_format
    from tensorflow.core.protobuf import saved_model_pb2

    message = saved_model_pb2.SavedModel.FromString((old / "saved_model.pb").read_bytes())
    (old / "saved_model.pb").unlink()
    (old / "saved_model.pbtxt").write_text(text_format.MessageToString(message))
    assert needs_rescue(old)
    rescue(old, tmp_path / "new")
    assert not (tmp_path / "new" / "saved_model.pbtxt").exists()
    assert tf.saved_model.load(str(tmp_path / "new")).signatures["serving_default"]


@pytest.mark.tensorflow
def test_missing_variables_are_told_when_the_model_is_loaded(old):
    shutil.rmtree(old / "variables")
    with pytest.raises(SourceError, match=r"the variables of the SavedModel in .*old are damaged or missing"):
        load_source(old)


@pytest.mark.tensorflow
def test_missing_engine_files_do_not_matter(tf, old, tmp_path):
    shutil.rmtree(old / "assets")
    rescue(old, tmp_path / "new")
    assert tf.saved_model.load(str(tmp_path / "new")).signatures["serving_default"]


@pytest.mark.tensorflow
def test_damaged_object_graph(old, tmp_path):
    edit(old, lambda meta_graph: meta_graph.object_graph_def.nodes[0].children.add(node_id=999, local_name="lost"))
    with pytest.raises(SourceError, match=r"is damaged: object 0 has a child 'lost' at place 999, and there are \d+"):
        rescue(old, tmp_path / "new")


@pytest.mark.tensorflow
def test_function_that_captures_an_engine_resource(old, tmp_path):
    def change(meta_graph):
        objects = meta_graph.object_graph_def
        place = next(i for i, item in enumerate(objects.nodes) if item.HasField("resource"))
        name = next(name for name in objects.concrete_functions if "signature_wrapper" in name)
        objects.concrete_functions[name].bound_inputs.append(place)

    edit(old, change)
    with pytest.raises(SourceError, match=r"captures trt_engine_resources/\S+, which belongs to TF-TRT's engine res"):
        rescue(old, tmp_path / "new")


@pytest.mark.tensorflow
def test_signature_that_needs_an_engine_resource(old, tmp_path):
    def change(meta_graph):
        node = next(node for node in meta_graph.graph_def.node if node.op == "CreateTRTResourceHandle")
        meta_graph.signature_def["serving_default"].outputs["odd"].name = f"{node.name}:0"

    edit(old, change)
    with pytest.raises(SourceError, match=r"signature serving_default of .* needs 'odd'"):
        rescue(old, tmp_path / "new")


@pytest.mark.tensorflow
def test_resources_without_engines(tf, old, tmp_path):
    """All that is left of an engine that a tool took out."""

    def change(meta_graph):
        for function in meta_graph.graph_def.library.function:
            for node in function.node_def:
                if node.op == "TRTEngineOp":
                    node.op = "PartitionedCall"
                    for name, given in (("Tin", "InT"), ("Tout", "OutT"), ("f", "segment_func")):
                        node.attr[name].CopyFrom(node.attr[given])
                    for name in ("InT", "OutT", "segment_func"):
                        del node.attr[name]
            for node in function.node_def:
                node.input[:] = [reference.replace(":out_tensor:", ":output:") for reference in node.input]
            for key in function.ret:
                function.ret[key] = function.ret[key].replace(":out_tensor:", ":output:")

    edit(old, change)
    report = rescue(old, tmp_path / "new")
    assert report.engines == ()
    assert report.notes == ("TF-TRT left no engine in it, only the resources of engines: they are removed",)
    assert tf.saved_model.load(str(tmp_path / "new")).signatures["serving_default"]


# --- The command ------------------------------------------------------------------------------------------------------


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.mark.tensorflow
def test_command(old, tmp_path, capsys):
    assert run(old, "-o", tmp_path / "new") == 0
    out = capsys.readouterr().out
    assert f"{old}, written by TensorFlow 2.13.1\n" in out
    assert "  TRTEngineOp_000_001 -> TRTEngineOp_000_001_native_segment_" in out
    assert ": FP16, " in out
    assert "removed: 16 nodes, 6 functions, 17 objects, 2 engine files\n" in out
    assert "note: TF-TRT converted it, 2 engines, with precision_mode='FP16'" in out
    assert out.endswith(f"convert it with: trt-rewriter convert {tmp_path / 'new'} -o OUT\n")
    with pytest.raises(InvalidParameterError, match="--overwrite"):
        run(old, "-o", tmp_path / "new")
    assert run(old, "-o", tmp_path / "new", "--overwrite", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["params"]["precision_mode"] == "FP16"
    assert report["destination"] == str(tmp_path / "new")
