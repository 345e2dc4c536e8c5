"""Templates in their spellings: what is read, and what is refused with the known names."""

import pytest

from rewriter.errors import InvalidParameterError
from rewriter.pass_selection import CustomOptimizer, RewriterConfig
from rewriter.pass_selection.config import FIELDS, TOGGLE_FIELDS, TOGGLES, read_config
from rewriter.pass_selection.table import BY_TOGGLE, IDLE_FIELDS


def test_a_mapping_and_the_dataclass_say_the_same():
    fields = {"optimizers": ["constfold"], "constant_folding": "on", "min_graph_nodes": -1}
    assert read_config(fields) == read_config(RewriterConfig(**fields))
    config = read_config(fields)
    assert (config.optimizers, config.constant_folding, config.min_graph_nodes) == (("constfold",), "ON", -1)


@pytest.mark.parametrize(
    ("value", "word"), [(True, "ON"), (False, "OFF"), (0, "DEFAULT"), (3, "AGGRESSIVE"), ("aggressive", "AGGRESSIVE")]
)
def test_spellings_of_a_toggle(value, word):
    assert read_config({"remapping": value}).remapping == word


@pytest.mark.parametrize(("value", "rounds"), [(0, 0), ("ONE", 1), ("two", 2), (7, 7), ("DEFAULT_NUM_ITERS", 0)])
def test_spellings_of_iterations(value, rounds):
    assert read_config({"meta_optimizer_iterations": value}).meta_optimizer_iterations == rounds


def test_custom_optimizers_as_mappings():
    entry = {"name": "fold_constants", "parameter_map": {"max_bytes": 1}}
    found = read_config({"custom_optimizers": [entry, CustomOptimizer("constfold")]}).custom_optimizers
    assert found == (CustomOptimizer("fold_constants", {"max_bytes": 1}), CustomOptimizer("constfold"))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (7, "must be a RewriterConfig .* or a mapping of its fields, not int"),
        ({"optimizer": []}, r"has no field 'optimizer'; did you mean 'optimizers' or '.*'\?"),
        (
            {"zebra": []},
            r"has no field 'zebra'; it has layout_optimizer, .* and 29 more \(see rewriter.RewriterConfig\)",
        ),
        ({3: []}, "has no field 3; it has layout_optimizer"),
        ({"optimizers": "constfold"}, r"optimizers must be a list of strings, not 'constfold'"),
        ({"optimizers": [3]}, "optimizers must be a list of strings"),
        ({"constant_folding": "yes"}, "constant_folding must be one of DEFAULT, ON, OFF, AGGRESSIVE.*not 'yes'"),
        ({"constant_folding": 9}, "constant_folding must be one of .*not 9"),
        ({"constant_folding": None}, "constant_folding must be one of .*not None"),
        ({"memory_optimization": "MUCH"}, "memory_optimization must be one of DEFAULT_MEM_OPT, .*not 'MUCH'"),
        ({"cpu_layout_conversion": 3}, "cpu_layout_conversion must be one of NO_CONVERSION_ON_CPU, .*not 3"),
        ({"disable_meta_optimizer": 1}, "disable_meta_optimizer must be True or False, not 1"),
        ({"meta_optimizer_iterations": 11}, "meta_optimizer_iterations must be one of 0 to 10, .*TWO, not 11"),
        ({"meta_optimizer_iterations": True}, "meta_optimizer_iterations must be one of"),
        ({"meta_optimizer_iterations": "THREE"}, "meta_optimizer_iterations must be one of .*not 'THREE'"),
        ({"min_graph_nodes": -2}, "min_graph_nodes must be an integer of at least -1, not -2"),
        ({"meta_optimizer_timeout_ms": 1.5}, "meta_optimizer_timeout_ms must be an integer"),
        ({"memory_optimizer_target_node_name_scope": 3}, "must be a string"),
        ({"auto_parallel": True}, "auto_parallel must be a mapping with enable, num_replicas, not True"),
        ({"auto_parallel": {"on": True}}, "auto_parallel has no field 'on'; it has enable, num_replicas"),
        ({"inter_optimizer_verifier_config": {"structure_verifier": "x"}}, "structure_verifier must be one of DEFAULT"),
        ({"auto_parallel": {"enable": "x"}}, "auto_parallel.enable must be True or False, not 'x'"),
        ({"auto_parallel": {"num_replicas": 1.5}}, "auto_parallel.num_replicas must be an integer of at least 0"),
        ({"scoped_allocator_opts": {"enable_op": "x"}}, "scoped_allocator_opts.enable_op must be a list of strings"),
        (
            {"post_optimization_verifier_config": {"verification_timeout_in_ms": "x"}},
            "verification_timeout_in_ms must be an integer of at least 0, not 'x'",
        ),
        ({"custom_optimizers": "constfold"}, "custom_optimizers must be a list of CustomOptimizer"),
        ({"custom_optimizers": ["constfold"]}, "'constfold' is no CustomOptimizer with a name"),
        ({"custom_optimizers": [{"parameter_map": {}}]}, "is no CustomOptimizer with a name"),
        ({"custom_optimizers": [{"name": "a", "options": {}}]}, "has no field 'options'; it has name, parameter_map"),
        ({"custom_optimizers": [{"name": "a", "parameter_map": 3}]}, "the parameter_map of 'a' is no mapping"),
    ],
)
def test_what_is_refused(template, message):
    with pytest.raises(InvalidParameterError, match=f"rewriter_config_template.*{message}"):
        read_config(template)


@pytest.mark.parametrize("template", [{"zebra": 1}, {"optimizer": 1}, {"custom_optimizers": [{"zebra": 1}]}])
def test_messages_are_short(template):
    with pytest.raises(InvalidParameterError) as caught:
        read_config(template)
    assert len(str(caught.value)) < 300


def test_every_field_has_a_meaning():
    # A toggle belongs to an optimizer, or stands among the fields without work.
    assert {name for name in TOGGLE_FIELDS if name not in BY_TOGGLE} <= set(IDLE_FIELDS)
    assert set(BY_TOGGLE) | set(IDLE_FIELDS) <= set(FIELDS)
    assert len(TOGGLES) == 6
