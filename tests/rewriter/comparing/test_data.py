"""The inputs of a comparison: scripts, files of Polygraphy, made-up values, and what is wrong with them."""

import importlib
import sys

import numpy as np
import pytest
from onnx import TensorProto

from passes.segments import TensorSpec
from rewriter.comparing.data import bound_samples, check_script, made_up, saved_inputs, script_samples
from rewriter.errors import InputError, MissingDependencyError
from rewriter.source import Signature

SIGNATURE = Signature((TensorSpec("x", TensorProto.FLOAT, ("batch", 2)),), ())
GOOD = {"x": np.ones((3, 2), np.float32)}


@pytest.fixture
def script(tmp_path):
    def write(text, name="data.py"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_a_script_yields_dicts_and_finds_what_lies_beside_it(script):
    script("ROWS = 4\n", "beside_the_data.py")
    path = script(
        "import numpy as np\nfrom beside_the_data import ROWS\n"
        "def load_data():\n    for n in range(1, 3):\n        yield {'x': np.full((ROWS, 2), n, np.float32)}\n"
        "def other():\n    return [{'x': np.zeros((1, 2), np.float32)}]\n"
    )
    found = list(bound_samples(SIGNATURE, script_samples(path), "the script"))
    assert [(sample["x"].shape, sample["x"][0, 0]) for sample in found] == [((4, 2), 1), ((4, 2), 2)]
    (other,) = script_samples(f"{path}:other")
    assert other["x"].shape == (1, 2)


def test_a_script_is_read_one_sample_at_a_time(script):
    samples = script_samples(script("def load_data():\n    yield {'x': 1}\n    raise RuntimeError('too far')\n"))
    assert next(samples) == {"x": 1}
    with pytest.raises(InputError, match=r"load_data of the data script .*data\.py failed: RuntimeError: too far"):
        next(samples)


@pytest.mark.parametrize(
    ("text", "function", "message"),
    [
        ("x = (", "", r"the data script .* failed: SyntaxError"),
        ("import nothing_of_this_name", "", "failed: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("raise SystemExit(3)", "", "failed: SystemExit: 3"),
        ("x = 1", "", r"has no function 'load_data': define it, or name another one as .*data\.py:FUNCTION"),
        ("load_data = 1", "", "has no function 'load_data'"),
        ("def load_data(): pass", ":other", "has no function 'other'"),
        ("def load_data(): pass", "", r"load_data returned None: it must yield inputs"),
        ("def load_data(): return {'x': 1}", "", "load_data returned a dict: it must yield inputs"),
        ("def load_data(path): yield {}", "", r"failed: TypeError: load_data\(\) missing 1 required"),
    ],
)
def test_what_is_wrong_with_a_script_is_told(script, text, function, message):
    with pytest.raises(InputError, match=message) as error:
        list(script_samples(script(text) + function))
    assert "input_fn" not in str(error.value)


def test_a_script_that_is_not_there():
    for name in ("GONE.py", "GONE.py:load", "GONE"):
        with pytest.raises(InputError, match=f"there is no data script '{name.partition(':')[0]}"):
            check_script(name)


def test_samples_that_do_not_fit_are_numbered():
    with pytest.raises(InputError, match=r"sample 1 of IN\.npz: input 'x' has shape \[1, 3\]"):
        list(bound_samples(SIGNATURE, [GOOD, {"x": np.ones((1, 3), np.float32)}], "IN.npz"))
    with pytest.raises(InputError, match=r"sample 0 of IN\.npz: unknown input 'y'"):
        list(bound_samples(SIGNATURE, [{"y": 1}], "IN.npz"))
    with pytest.raises(InputError, match=r"there are no inputs in IN\.npz: give at least one sample"):
        list(bound_samples(SIGNATURE, [], "IN.npz"))


def test_made_up_inputs_keep_what_the_source_is_known_to_take():
    assert list(made_up(SIGNATURE, {}, [GOOD])()) == [GOOD]
    fixed = Signature((TensorSpec("x", TensorProto.FLOAT, (8, 2)),), ())
    assert [sample["x"].shape for sample in made_up(fixed, {}, [GOOD])()] == [(8, 2)]
    assert [sample["x"].shape for sample in made_up(SIGNATURE, {"x": [(5, 2)]}, [GOOD])()] == [(5, 2)]
    assert [sample["x"].shape for sample in made_up(SIGNATURE, {}, [])()] == [(1, 2), (8, 2)]


def test_inputs_that_polygraphy_saved(tmp_path):
    pytest.importorskip("polygraphy")
    from polygraphy.json import save_json

    path = str(tmp_path / "inputs.json")
    save_json([GOOD, {"x": np.zeros((1, 2), np.float32)}], path)
    found = list(bound_samples(SIGNATURE, saved_inputs(path), path))
    assert [sample["x"].tolist() for sample in found] == [[[1, 1]] * 3, [[0, 0]]]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", '["x"]', '[{"POLYGRAPHY_CLASS": "ndarray"}]'])
def test_what_polygraphy_did_not_save_is_told(tmp_path, text, capfd):
    pytest.importorskip("polygraphy")
    path = tmp_path / "inputs.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"inputs\.json"):
        list(bound_samples(SIGNATURE, saved_inputs(str(path)), "inputs.json"))
    assert not "".join(capfd.readouterr())


def test_files_of_polygraphy_need_it(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "polygraphy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    importlib.invalidate_caches()
    with pytest.raises(MissingDependencyError, match=r"trt-rewriter\[compare\]"):
        saved_inputs(str(tmp_path / "inputs.json"))
