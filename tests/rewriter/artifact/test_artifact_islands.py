"""SavedModels of island nodes in and out of artifacts."""

import os
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from passes.island_node import (
    ISLAND_DOMAIN,
    IslandAttributes,
    island_nodes,
    make_island,
    read_island,
    with_folders,
)
from passes.model import Model
from rewriter.artifact.islands import copy_islands, keep_islands, resolve_islands
from rewriter.errors import ArtifactError


def model_of(*folders):
    nodes = [
        make_island(f"TFIsland_{i:03d}", (f"x{i}",), (f"x{i + 1}",), IslandAttributes(str(folder), ("x",), ("y",)))
        for i, folder in enumerate(folders)
    ]
    first, last = (helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, [None]) for i in (0, max(len(folders), 0)))
    graph = helper.make_graph(nodes, "g", [first], [last])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(ISLAND_DOMAIN, 1)]
    return Model(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def folders(model):
    return {n.op_type: read_island(n).saved_model for n in island_nodes(model.proto)}


@pytest.fixture
def sources(tmp_path):
    """Two folders as TensorFlow writes them."""
    made = []
    for name in ("a", "b"):
        folder = tmp_path / "source" / name
        (folder / "variables").mkdir(parents=True)
        (folder / "assets").mkdir()
        (folder / "saved_model.pb").write_bytes(name.encode())
        (folder / "variables" / "variables.index").write_bytes(b"index")
        made.append(folder)
    return made


@pytest.fixture
def artifact(sources, tmp_path):
    """(model, root, files) of islands that were copied."""
    root = tmp_path / "out"
    root.mkdir()
    model, files = copy_islands(model_of(*sources), root)
    return model, root, files


def test_there_and_back(artifact):
    model, root, files = artifact
    assert folders(model) == {"TFIsland_000": "tensorflow/TFIsland_000", "TFIsland_001": "tensorflow/TFIsland_001"}
    assert files == [
        "tensorflow/TFIsland_000/saved_model.pb",
        "tensorflow/TFIsland_000/variables/variables.index",
        "tensorflow/TFIsland_001/saved_model.pb",
        "tensorflow/TFIsland_001/variables/variables.index",
    ]
    assert (root / "tensorflow/TFIsland_001/saved_model.pb").read_bytes() == b"b"
    found = folders(resolve_islands(model, root, files))
    assert found["TFIsland_001"] == str(root / "tensorflow" / "TFIsland_001")
    assert all(Path(folder).is_absolute() for folder in found.values())


def test_a_second_signature_has_a_folder_of_its_own(artifact, sources):
    _, root, files = artifact
    other, more = copy_islands(model_of(sources[1]), root, "tensorflow.1")
    assert more == ["tensorflow.1/TFIsland_000/saved_model.pb", "tensorflow.1/TFIsland_000/variables/variables.index"]
    assert folders(resolve_islands(other, root, [*files, *more]))["TFIsland_000"].endswith("tensorflow.1/TFIsland_000")
    assert (root / "tensorflow/TFIsland_000/saved_model.pb").read_bytes() == b"a"


def test_a_model_without_islands_is_left_alone(tmp_path):
    model = model_of()
    assert copy_islands(model, tmp_path) == (model, [])
    assert resolve_islands(model, tmp_path, []) is model


def test_copies_where_the_file_system_has_no_links(sources, tmp_path, monkeypatch):
    def link(source, target):
        raise OSError("no links")

    monkeypatch.setattr(os, "link", link)
    _, files = copy_islands(model_of(*sources), tmp_path / "out")
    assert len(files) == 4


@pytest.mark.parametrize(
    "path",
    [
        "../elsewhere", "tensorflow/../../x", "/etc", "tensorflow//x", "./tensorflow", "tensorflow/", "C:/x", "a\\b",
        ".", "tensorflow/./x",
    ],
)  # fmt: skip
def test_paths_that_lead_elsewhere_are_refused(artifact, path):
    model, root, files = artifact
    with pytest.raises(ArtifactError, match="has the unsafe path"):
        resolve_islands(with_folders(model, {"TFIsland_000": path}), root, files)


def test_links_are_refused(artifact, tmp_path):
    model, root, files = artifact
    (root / "tensorflow").rename(tmp_path / "moved")
    (root / "tensorflow").symlink_to(tmp_path / "moved")
    with pytest.raises(ArtifactError, match="behind the link"):
        resolve_islands(model, root, files)


def test_a_link_among_the_files_is_refused(artifact):
    model, root, files = artifact
    (root / "tensorflow/TFIsland_000/assets.extra").symlink_to("/etc")
    with pytest.raises(ArtifactError, match="no plain file"):
        resolve_islands(model, root, files)


def test_a_file_that_is_not_listed_is_refused(artifact):
    model, root, files = artifact
    (root / "tensorflow/TFIsland_001/keras_metadata.pb").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"'tensorflow/TFIsland_001/keras_metadata.pb' is not in the manifest"):
        resolve_islands(model, root, files)


def test_a_folder_that_is_not_listed_or_gone_is_refused(artifact):
    model, root, files = artifact
    with pytest.raises(ArtifactError, match="lists no SavedModel of 'TFIsland_000'"):
        resolve_islands(model, root, files[2:])
    (root / files[0]).unlink()
    with pytest.raises(ArtifactError, match="'TFIsland_000' is not at"):
        resolve_islands(model, root, files)


def test_a_source_that_is_gone_is_told(tmp_path):
    with pytest.raises(ArtifactError, match="'TFIsland_000' is not at"):
        copy_islands(model_of(tmp_path / "gone"), tmp_path / "out")


def test_an_operator_that_is_none_is_refused(sources, tmp_path):
    model = model_of(*sources)
    proto = model.copy_proto()
    proto.graph.node[0].op_type = "TFIsland_../../x"
    with pytest.raises(ArtifactError, match="has the operator"):
        copy_islands(model.with_proto(proto), tmp_path)


def test_a_damaged_node_is_told(artifact):
    model, root, files = artifact
    proto = model.copy_proto()
    del proto.graph.node[0].attribute[:]
    with pytest.raises(ArtifactError, match="has lost its SavedModel"):
        resolve_islands(model.with_proto(proto), root, files)
    with pytest.raises(ArtifactError, match="has lost its SavedModel"):
        copy_islands(model.with_proto(proto), root)


def test_kept_islands_outlive_their_folders(sources, tmp_path):
    kept = keep_islands(model_of(*sources), tmp_path / "kept")
    for source in sources:
        (source / "saved_model.pb").unlink()
    assert Path(folders(kept)["TFIsland_000"], "saved_model.pb").read_bytes() == b"a"
    assert Path(folders(kept)["TFIsland_000"]).is_absolute()
