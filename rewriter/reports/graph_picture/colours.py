"""The colours of pictures."""

from __future__ import annotations

from collections.abc import Mapping

from rewriter.reports.graph_picture import contents

#: (fill, border) of engines, in turn.
ENGINES = (
    ("#cfe8d5", "#2f7d4a"), ("#cfe0f7", "#2f5f9e"), ("#fbe3b8", "#a06a10"), ("#e6d5f5", "#6f3fa0"),
    ("#f9d0d8", "#a83250"), ("#c9ecec", "#1f7a7a"), ("#e8ecc0", "#6f7a1a"), ("#fbd5bd", "#a84f1c"),
    ("#d8dcf8", "#4048a8"), ("#f5d5ee", "#9a3484"), ("#d3efc0", "#4c8a1c"), ("#e8dccb", "#7a5a30"),
)  # fmt: skip
#: kind of box -> (fill, border).
KINDS: Mapping[str, tuple[str, str]] = {
    contents.NATIVE: ("#e5e7eb", "#6b7280"),
    contents.ISLAND: ("#ff9f43", "#a34d00"),
    contents.INPUT: ("#ffffff", "#374151"),
    contents.OUTPUT: ("#ffffff", "#374151"),
}
#: dtype of a line -> its colour.
DTYPES: Mapping[str, str] = {
    "float32": "#475569", "float16": "#8b5cf6", "bfloat16": "#c026d3", "float64": "#1e3a8a", "int64": "#059669",
    "int32": "#d97706", "int8": "#65a30d", "uint8": "#84cc16", "bool": "#dc2626", "string": "#92400e",
}  # fmt: skip
OTHER_DTYPE = "#9ca3af"


def engine_colours(number: int) -> tuple[str, str]:
    """Fill and border of an engine; after twelve they come again."""
    return ENGINES[number % len(ENGINES)]


def box_colours(box: contents.Box) -> tuple[str, str]:
    """Fill and border of a box."""
    return engine_colours(box.engine) if box.engine >= 0 else KINDS[box.kind]


def dtype_colour(dtype: str) -> str:
    """The colour of a line."""
    return DTYPES.get(dtype, OTHER_DTYPE)
