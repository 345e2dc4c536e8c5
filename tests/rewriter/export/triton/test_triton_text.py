"""The text format of protocol buffers."""

import pytest

from rewriter.export.triton.text import Word, map_entries, message_text


def test_fields_of_all_kinds():
    fields = {
        "name": 'a "b"\\\n\u00e9\x01',
        "flag": True,
        "count": 3,
        "kind": Word("KIND_CPU"),
        "none": None,
        "dims": [1, -1],
        "empty": [],
        "texts": ["0", "1"],
        "inner": {"deep": {}},
        "map": map_entries({"k": {"string_value": "v"}}),
    }
    assert message_text(fields).splitlines() == [
        'name: "a \\"b\\"\\\\\\n\u00e9\\001"',
        "flag: true",
        "count: 3",
        "kind: KIND_CPU",
        "dims: [ 1, -1 ]",
        'texts: "0"',
        'texts: "1"',
        "inner {",
        "  deep {",
        "  }",
        "}",
        "map {",
        '  key: "k"',
        "  value {",
        '    string_value: "v"',
        "  }",
        "}",
    ]


def test_other_values_are_refused():
    with pytest.raises(TypeError, match="no text for a float"):
        message_text({"x": 1.5})
