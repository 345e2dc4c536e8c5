"""A folder that takes another's place: at every moment at which it can end, the old one or the new one is there."""

from pathlib import Path

import pytest

from rewriter.installing import install, made_parents, sibling


@pytest.fixture
def folders(tmp_path):
    """A finished folder, and the place that it is to take, where another one lies."""
    target, scratch = tmp_path / "model", tmp_path / ".model.new-1"
    for folder, text in ((target, "old"), (scratch, "new")):
        folder.mkdir()
        (folder / "content").write_text(text)
    return scratch, target


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_it_takes_an_empty_place_and_an_occupied_one(folders, tmp_path):
    scratch, target = folders
    install(scratch, target)
    assert (target / "content").read_text() == "new"
    install(target, tmp_path / "elsewhere")
    assert listing(tmp_path) == ["elsewhere"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, OSError])
@pytest.mark.parametrize("moment", ["before the first", "after the first", "before the second", "after the second"])
def test_an_interrupt_leaves_one_of_the_two(folders, tmp_path, monkeypatch, error, moment):
    scratch, target = folders
    rename, calls = Path.rename, []

    def interrupted(path, to):
        calls.append(path)
        when, _, which = moment.partition(" the ")
        now = len(calls) == ("first", "second").index(which) + 1
        if now and when == "before":
            raise error
        result = rename(path, to)
        if now:
            raise error
        return result

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(error):
        install(scratch, target)
    assert (target / "content").read_text() == ("new" if moment == "after the second" else "old")
    assert [name for name in listing(tmp_path) if "old" in name] == []


def test_an_old_folder_that_cannot_come_back_is_kept_and_told(folders, tmp_path, monkeypatch, caplog):
    scratch, target = folders
    rename, calls = Path.rename, []

    def failing(path, to):
        calls.append(path)
        if len(calls) > 1:
            raise OSError("no")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no"):
        install(scratch, target)
    (aside,) = tmp_path.glob(".model.old-*")
    assert (aside / "model" / "content").read_text() == "old"
    assert str(aside) in caplog.text


def test_a_sibling_has_ordinary_permissions(tmp_path):
    (tmp_path / "plain").mkdir()
    made = sibling(tmp_path / "model", "new")
    assert made.parent == tmp_path
    assert made.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_parents_are_taken_away_again(tmp_path):
    def fail():
        with made_parents(tmp_path / "a" / "b"):
            assert (tmp_path / "a" / "b").is_dir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert listing(tmp_path) == []
