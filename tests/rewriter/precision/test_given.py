"""Ranges of an earlier calibration: which signature gets which table."""

import numpy as np
import pytest
from onnx import parser

from passes import model as models
from passes.precision.ranges import RangeTable, TensorRange
from passes.segments import TensorSpec
from rewriter import Converter, InvalidParameterError
from rewriter.artifact import ArtifactPart, save_artifact
from rewriter.errors import ArtifactError
from rewriter.params import ConversionParams, check_params
from rewriter.precision.given import check_calibration, find_ranges, serves
from rewriter.precision.plan import make_precision_plan
from rewriter.source import Signature


def table(scale):
    return RangeTable({"x": TensorRange(-scale, scale)}, "minmax", 1)


SMALL, LARGE, OTHER = table(1.0), table(100.0), table(7.0)


def part(name, ranges):
    proto = parser.parse_model('<ir_version: 10, opset_import: ["": 20]> g (float[2] x) => (float[2] y) {y = Neg(x)}')
    signature = Signature((TensorSpec("x", 1, (2,)),), (TensorSpec("y", 1, (2,)),), name)
    return ArtifactPart(models.from_proto(proto), signature, {}, {}, (), ranges)


@pytest.fixture
def artifact(tmp_path):
    return save_artifact(tmp_path / "out", part("small", SMALL), part("large", LARGE), part("plain", None))


def plan(calibration, **params):
    return make_precision_plan(check_params(ConversionParams(precision_mode="INT8", **params)), None, calibration, None)


def tables(calibration, *keys, inputs=None):
    return {key: one.table for key, one in plan(calibration).by_signature(keys, inputs).items()}


def test_an_artifact_gives_each_signature_its_own(artifact):
    assert tables(artifact, "small", "large") == {"small": SMALL, "large": LARGE}
    assert tables(str(artifact), "large", "plain") == {"large": LARGE, "plain": RangeTable()}
    assert tables(artifact, "large") == {"large": LARGE}


def test_a_signature_of_another_name_gets_the_first_ones_when_alone(artifact, tmp_path):
    (found,) = plan(artifact).by_signature(["main"], None).values()
    assert found.table == SMALL
    (note,) = found.notes
    assert "has no signature 'main', only 'small', 'large', 'plain'; the ranges used are those of 'small'" in note
    single = save_artifact(tmp_path / "single", part("small", SMALL))
    (found,) = plan(single).by_signature(["main"], None).values()
    assert (found.table, found.notes) == (SMALL, ())


def test_an_unknown_signature_among_several_is_told(artifact):
    with pytest.raises(InvalidParameterError, match=r"has no signature 'main', only 'small', .*give a dict"):
        plan(artifact).by_signature(["small", "main"], None)


def test_a_table_or_its_file_serves_all(artifact):
    assert tables(OTHER, "a", "b") == {"a": OTHER, "b": OTHER}
    assert tables(artifact / "calibration.1.json", "small", "large") == {"small": LARGE, "large": LARGE}
    assert tables(None, "a") == {"a": None}


def test_a_mapping_gives_single_signatures_theirs(artifact):
    given = {"a": OTHER, "large": artifact, "b": artifact / "calibration.json"}
    assert tables(given, "a", "large", "b", "c") == {"a": OTHER, "large": LARGE, "b": SMALL, "c": None}
    (found,) = plan({"a": artifact}).by_signature(["a"], None).values()
    assert (found.table, len(found.notes)) == (SMALL, 1)
    with pytest.raises(InvalidParameterError, match="calibration names the signature 'd', which is not converted"):
        tables({"d": OTHER}, "a", "b")


def test_the_others_are_calibrated(artifact):
    def inputs():
        return [np.zeros(2, np.float32)]

    given = plan({"a": OTHER})
    for functions in (inputs, {"b": inputs}):
        given.check_inputs(functions)
        found = given.by_signature(["a", "b"], functions)
        assert [(one.table, one.input_fn) for one in found.values()] == [(OTHER, None), (None, inputs)]
    with pytest.raises(InvalidParameterError, match=r"leave calibration_input_fn .* out: the ranges are given"):
        given.check_inputs({"a": inputs})
    with pytest.raises(InvalidParameterError, match=r"leave calibration_input_fn .* out: the ranges are given"):
        given.by_signature(["a"], inputs)
    for everything in (OTHER, artifact):
        with pytest.raises(InvalidParameterError, match=r"leave calibration_input_fn .* out: the ranges are given"):
            plan(everything).check_inputs(inputs)


def test_wrong_inputs_are_told_before_any_work():
    for bad, words in (
        (3, "calibration_input_fn must be a function that yields inputs, not int"),
        (lambda a: [a], "calibration_input_fn must take no arguments .*'a'"),
        ({"a": lambda a: [a]}, "calibration_input_fn must take no arguments"),
    ):
        with pytest.raises(InvalidParameterError, match=words):
            plan(None).check_inputs(bad)
    plan(None).check_inputs({"a": None})
    with pytest.raises(InvalidParameterError, match="use_calibration is False"):
        plan(None, use_calibration=False).check_inputs(list)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "calibration must be a RangeTable, or the path of a calibration.json or an artifact, not int"),
        (b"x", "not bytes"),
        ([OTHER], "not list"),
        ({"a": 3}, r"calibration\['a'\] must be a RangeTable"),
        ({}, "with at least one entry"),
        ({1: OTHER}, "signature key -> ranges"),
    ],
)
def test_what_is_no_calibration(value, words):
    with pytest.raises(InvalidParameterError, match=words):
        check_calibration(value)


def test_files_of_an_artifact_are_checked(artifact, tmp_path):
    path = artifact / "calibration.1.json"
    path.write_text(path.read_text().replace("100.0", "101.0"))
    with pytest.raises(ArtifactError, match=r"calibration\.1\.json is not the file that was saved"):
        check_calibration(artifact)
    with pytest.raises(ArtifactError, match=r"holds no calibration\.json: nothing was calibrated"):
        check_calibration(save_artifact(tmp_path / "none", part("a", None), part("b", None)))


def test_what_is_given_for_whom(artifact):
    given = check_calibration({"a": OTHER})
    assert [serves(given, key) for key in ("a", "b", None)] == [True, False, False]
    assert serves(check_calibration(artifact), None)
    assert not serves(None, "a")
    assert find_ranges(None, "a", alone=True).table is None


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two signatures whose tensors have the same names, for inputs of very different size."""
    import tensorflow as tf

    class Twins(tf.Module):
        def __init__(self):
            self.body = tf.Variable(np.random.default_rng(3).standard_normal((16, 16), np.float32))

        @tf.function(input_signature=[tf.TensorSpec([None, 16], tf.float32, "x")])
        def call(self, x):
            return {"y": tf.nn.relu(x @ self.body)}

        @tf.function(input_signature=[tf.TensorSpec([None, 16], tf.float32, "x")])
        def other(self, x):
            return {"y": tf.nn.relu(x @ self.body)}

    model = Twins()
    path = str(tmp_path_factory.mktemp("twins") / "saved")
    tf.saved_model.save(model, path, signatures={"small": model.call, "large": model.other})
    return path


@pytest.mark.tensorflow
@pytest.mark.rtx
def test_the_ranges_of_an_artifact_come_back_by_signature(saved, rtx, tmp_path):
    x = np.random.default_rng(4).standard_normal((32, 16)).astype(np.float32)
    names = ("calibration.json", "calibration.1.json")

    def convert(name, inputs=None, keys=("small", "large"), **options):
        with Converter(
            saved,
            input_saved_model_signature_key=list(keys),
            precision_mode="INT8",
            minimum_segment_size=1,
            backend=rtx,
            progress=False,
            **options,
        ) as converter:
            converter.convert(inputs)
            converter.calibrate()
            return converter.save(tmp_path / name)

    first = convert("first", {"small": lambda: [x], "large": lambda: [100 * x]})
    found = [(first / name).read_text() for name in names]
    assert found[0] != found[1]
    again = convert("again", calibration=first)
    assert [(again / name).read_text() for name in names] == found
    alone = convert("alone", keys=["large"], calibration=first)
    assert (alone / names[0]).read_text() == found[1]
    swapped = convert("swapped", calibration={"small": first / names[1], "large": first / names[0]})
    assert [(swapped / name).read_text() for name in names] == found[::-1]
