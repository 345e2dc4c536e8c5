"""What `map_batches` tells Ray Data, and what it refuses before an actor starts; Ray is played."""

import types

import pytest

from rewriter.errors import InputError, InvalidParameterError
from rewriter.export.ray import importing, map_batches


class Dataset:
    """Remembers what it was asked to do.

    Args:
        columns: those that Ray knows without computing anything; None where it does not.
    """

    def __init__(self, columns):
        self._columns = columns

    def columns(self, fetch_if_missing=True):
        assert not fetch_if_missing, "nothing is computed before it has to be"
        return self._columns

    def map_batches(self, actor, **options):
        return {"actor": actor, **options}


@pytest.fixture(autouse=True)
def played(monkeypatch):
    strategy = lambda min_size, max_size: (min_size, max_size)  # noqa: E731
    modules = {
        "ray": types.SimpleNamespace(is_initialized=lambda: True, cluster_resources=lambda: {"CPU": 2}),
        "ray.data": types.SimpleNamespace(Dataset=Dataset, ActorPoolStrategy=strategy),
    }
    monkeypatch.setattr(importing.importlib, "import_module", modules.__getitem__)


def test_actors_are_told_all(rows):
    asked = map_batches(Dataset(["id", "x"]), rows, columns={"x0": "x"}, actors=(1, 3), batch_size=5, num_cpus=2)
    made = asked["fn_constructor_kwargs"]
    assert (asked["batch_size"], asked["compute"], asked["num_cpus"], asked["num_gpus"]) == (5, (1, 3), 2, None)
    assert (made["reads"], made["writes"], made["keep"]) == ({"x0": "x"}, {"y0": "y0"}, True)
    assert (made["options"].artifact, made["options"].load["threads"]) == (str(rows), 2)


@pytest.mark.parametrize("columns", [None, []])
def test_columns_that_nobody_knows_yet_are_the_actors_matter(rows, columns):
    assert map_batches(Dataset(columns), rows)["batch_size"] == 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, r"no column 'x0' \(it has id, x\): say columns="),
        ({"columns": {"x0": "x"}, "outputs": {"y0": "id"}}, "has a column 'id' already: say outputs=, or keep=False"),
    ],
)
def test_columns_are_checked_at_once(rows, options, words):
    with pytest.raises(InputError, match=words):
        map_batches(Dataset(["id", "x"]), rows, **options)
    map_batches(Dataset(["id", "x0"]), rows, outputs={"y0": "id"}, keep=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "^batch_size must be a whole number of at least 1, not 0"),
        ({"actors": (2, 1)}, "actors must be at least 1"),
        ({"num_cpus": -1}, "num_cpus must be a number of at least 0"),
        ({"num_gpus": "1"}, "num_gpus must be a number of at least 0"),
        ({"columns": ["x"]}, "columns must be a mapping"),
        ({"columns": {"y": "x"}}, "columns: the model has no 'y'; it has: x0"),
        ({"outputs": {"z": "x"}}, "outputs: the model has no 'z'; it has: y0"),
    ],
)
def test_arguments_are_checked(rows, options, words):
    with pytest.raises(InvalidParameterError, match=words):
        map_batches(Dataset(["x0"]), rows, **options)


def test_other_data_are_refused(rows, whole):
    with pytest.raises(InvalidParameterError, match=r"dataset must be a ray\.data\.Dataset, not a list"):
        map_batches([{"x0": 1}], rows)
    with pytest.raises(InvalidParameterError, match=r"^batch_size=4 needs a batch dimension.*leave batch_size out"):
        map_batches(Dataset(["x0"]), whole, batch_size=4)
