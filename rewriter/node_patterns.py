"""Regular expressions for node names that remember what the user wrote, where that was a name."""

from __future__ import annotations


class NodePattern(str):
    """A regular expression that stands for one entry of another argument than `node_denylist`.

    It goes wherever an expression goes; messages tell what it stands for.

    Attributes:
        argument: the argument that the user gave.
        entry: what was in it.
    """

    argument: str
    entry: str

    def __new__(cls, pattern: str, argument: str, entry: str) -> NodePattern:
        """The expression `pattern` for `entry` of `argument`."""
        made = super().__new__(cls, pattern)
        made.argument = argument
        made.entry = entry
        return made

    def __reduce__(self) -> tuple[type[NodePattern], tuple[str, str, str]]:
        """What a copy is made of."""
        return type(self), (str(self), self.argument, self.entry)


def argument_of(pattern: str, otherwise: str = "node_denylist") -> str:
    """The argument that an expression came from."""
    return pattern.argument if isinstance(pattern, NodePattern) else otherwise


def told_match(pattern: str) -> str:
    """The reason of a node whose name an expression is found in."""
    if isinstance(pattern, NodePattern):
        return f"{pattern.argument} holds {pattern.entry!r}"
    return f"node_denylist: {pattern!r} matches its name"


def told_idle(pattern: str) -> str:
    """What to say of an expression that no node's name answers to."""
    if isinstance(pattern, NodePattern):
        return (
            f"no node of the ONNX graph comes from {pattern.entry!r}: it is misspelt, merged into another, or removed"
        )
    return f"no node's name contains {pattern!r}"
