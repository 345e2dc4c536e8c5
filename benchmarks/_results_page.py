"""RESULTS.md from what lies in results/: pure, nothing is measured and no heavy package is needed.

`page` puts the summary, the contents, all sections and the machines together; `regenerate.py` says what a section is
made of.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from _plots import Chart
from _sections import RESULTS, SECTIONS, Section

Document = Mapping[str, Any]

#: Names of packages in the list of machines, in this order; all others stay out of it.
SHOWN = {
    "trt-rewriter": "trt-rewriter", "numpy": "numpy", "onnx": "onnx", "onnxruntime": "ONNX Runtime",
    "onnxruntime-gpu": "ONNX Runtime GPU", "tensorflow": "TensorFlow", "tensorflow-cpu": "TensorFlow", "keras": "Keras",
    "tf2onnx": "tf2onnx", "tensorrt-rtx-cu13": "TensorRT-RTX", "tensorrt-rtx": "TensorRT-RTX",
    "tensorrt": "TensorRT", "polygraphy": "polygraphy", "torch": "PyTorch", "jax": "JAX",
}  # fmt: skip
#: Where the figures without JSON are from.
RECORDS = (
    "**Records**: unless they name a GPU, of 2 shared x86-64 cores, 24 GiB, no GPU, Python 3.11; TensorFlow 2.21; "
    "tf2onnx 1.17; onnx 1.23.2; ONNX Runtime 1.32; TensorRT-RTX 1.7.1.116. "
    "Those of a GPU tell the device and its versions."
)
#: Lines around what is shown only while there are no figures in JSON.
RECORD, END = "{{record}}", "{{end}}"
_MARKER = re.compile(r"\{\{\s*(plot\s+)?([A-Za-z_][\w.]*)\s*\}\}")


class PageError(ValueError):
    """What lies in results/ does not fit together; the text says where and what to do."""


@dataclasses.dataclass(frozen=True)
class Material:
    """What a section is rendered from.

    Attributes:
        section: its place, script and arguments.
        prose: text of results/NAME.md.
        document: content of results/NAME.json, None when there is none.
        tables: the script's tables.
        facts: single figures by key.
        charts: what is drawn, by key.
    """

    section: Section
    prose: str
    document: Document | None = None
    tables: str = ""
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    charts: Mapping[str, Chart] = dataclasses.field(default_factory=dict)

    @property
    def title(self) -> str:
        first, _, _ = self.prose.partition("\n")
        if not first.startswith("## "):
            raise PageError(f"{self.section.prose}: the first line must be the heading, '## Question?'")
        return first.removeprefix("## ").strip()

    def image(self, key: str) -> str:
        """File name of a chart in images/."""
        return f"{self.section.name}_{key}.svg"


def gather(section: Section) -> Material:
    """Reads a section's files and asks its script for tables, facts and charts.

    Raises:
        PageError: the prose is missing, or the script cannot render its own JSON.
    """
    if not section.prose.is_file():
        raise PageError(f"{section.prose} is missing: every section needs its prose, '## Question?' first")
    prose = section.prose.read_text(encoding="utf-8").rstrip("\n")
    if not section.json.is_file():
        return Material(section, prose)
    document = json.loads(section.json.read_text(encoding="utf-8"))
    script = importlib.import_module(section.script)
    try:
        tables = script.render(document)
        facts = _optional(script, "facts")(document)
        charts = _optional(script, "plots")(document)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        text = f"{section.json} is not what {section.script}.py renders now ({type(error).__name__}: {error})"
        raise PageError(f"{text}; measure it again: regenerate.py --only {section.name}") from error
    return Material(section, prose, document, tables.strip("\n"), facts, charts)


def gather_all() -> list[Material]:
    """Every section, in order."""
    return [gather(section) for section in SECTIONS]


def _optional(script: Any, name: str) -> Callable[[Document], dict[str, Any]]:
    return getattr(script, name, lambda _: {})


def page(materials: Sequence[Material], summary: str) -> str:
    """The text of RESULTS.md.

    Args:
        materials: the sections in order.
        summary: what stands at the top (results/summary.md). A line of it with a fact that has not been measured is
            left out.
    """
    machines = Machines()
    bodies = [section_text(material, machines) for material in materials]
    parts = [_summary(summary, materials).rstrip(), contents(materials), *bodies, machines.text()]
    return "\n\n".join(parts) + "\n"


def _summary(text: str, materials: Sequence[Material]) -> str:
    known = {material.section.name: material for material in materials}
    lines = []
    for line in text.splitlines():
        references = [match[2].partition(".") for match in _MARKER.finditer(line)]
        for name, _, _ in references:
            if name not in known:
                raise PageError(f"{RESULTS / 'summary.md'}: no section is called {name!r} (line {line[:60]!r})")
        if all(_is_told(known[name], key) for name, _, key in references):
            lines.append(_MARKER.sub(lambda match: _of(known, match), line))
    return "\n".join(lines)


def _is_told(material: Material, key: str) -> bool:
    """Whether a marker of the summary has something to say: figures, or `record` while there are none of this run."""
    measured = material.document is not None
    if not key:
        return True
    old = not measured or "record" in (material.document or {})
    return old if key == "record" else measured


def _of(known: Mapping[str, Material], match: re.Match[str]) -> str:
    name, _, key = match[2].partition(".")
    if key == "record":
        return f"record of {known[name].section.record}"
    if not key:
        return f"#{anchor(known[name].title)}"
    return picture(known[name], key) if match[1] else fact(known[name], key)


def contents(materials: Sequence[Material]) -> str:
    """Links to all sections, by their parts."""
    lines = ["## Contents", ""]
    part = ""
    for material in materials:
        if material.section.part != part:
            part = material.section.part
            lines.append(f"- **{part}**")
        lines.append(f"  - [{material.title}](#{anchor(material.title)}){_short_state(material)}")
    lines.append("- [Machines and versions](#machines-and-versions)")
    return "\n".join(lines)


def _short_state(material: Material) -> str:
    document = material.document
    if document is not None and "record" not in document:
        return f" · {document['environment'].get('date', '')[:10]}".rstrip(" ·")
    return f" · record of {material.section.record}" if material.section.record else " · not measured yet"


def anchor(title: str) -> str:
    """The fragment under which GitHub shows a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def section_text(material: Material, machines: Machines) -> str:
    """One section: heading, when and where it was measured, prose, tables, pictures."""
    heading, _, prose = material.prose.partition("\n")
    lines = [heading, "", state(material, machines), "", *_filled(material, prose.strip("\n"))]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip("\n")


def _filled(material: Material, prose: str) -> list[str]:
    """The prose with its markers replaced; without figures, lines that need them are left out (`state` tells it)."""
    lines = []
    tables = record = False
    for line in prose.splitlines():
        marker = line.strip()
        if marker in (RECORD, END):
            record = marker == RECORD
        elif record and material.document is not None:
            continue
        elif marker == "{{tables}}":
            tables = True
            lines.append(material.tables)
        elif material.document is not None or not _MARKER.search(line):
            lines.append(_MARKER.sub(lambda match: _own(material, match), line))
    if record:
        raise PageError(f"{material.section.prose}: {RECORD} has no {END}")
    if material.document is not None and not tables:
        raise PageError(f"{material.section.prose}: no line {{{{tables}}}}, although there is {material.section.json}")
    return lines


def _own(material: Material, match: re.Match[str]) -> str:
    return picture(material, match[2]) if match[1] else fact(material, match[2])


def fact(material: Material, key: str) -> str:
    """One figure of a section as text."""
    if key not in material.facts:
        known = ", ".join(material.facts) or "none"
        raise PageError(f"{material.section.name} has no fact {key!r}; those of {material.section.script}.py: {known}")
    return material.facts[key]


def picture(material: Material, key: str) -> str:
    """A chart of a section as Markdown."""
    if key not in material.charts:
        known = ", ".join(material.charts) or "none"
        raise PageError(f"{material.section.name} has no plot {key!r}; those of {material.section.script}.py: {known}")
    return f"![{material.charts[key].title}](images/{material.image(key)})"


def state(material: Material, machines: Machines) -> str:
    """One line: the command, when it was measured, and on which machine."""
    section, document = material.section, material.document
    command = f"`{section.command()}`" if section.script else ""
    if document is None:
        if section.record:
            again = "; not run since" if section.script else ""
            return _joined(command, f"record of {section.record}: its figures were kept in this text only{again}.")
        return _joined(command, f"not measured yet (`python benchmarks/regenerate.py --only {section.name}`).")
    if "record" in document:
        return _joined(command, f"record of {document['record']}; not run since.")
    environment = document["environment"]
    load = f", load {environment['load']:g} at its end" if environment.get("load") is not None else ""
    place = machines.link(document)
    return _joined(command, f"measured {environment.get('date', 'on an unknown day')} UTC on {place}{load}.")


def _joined(command: str, told: str) -> str:
    return f"{command}: {told}" if command else told[:1].upper() + told[1:]


class Machines:
    """Gives every environment a letter, in the order in which sections come."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def link(self, document: Document) -> str:
        """A link to the machine of a document; the same environment gets the same letter."""
        text = describe(document)
        letter = self._known.setdefault(text, _letters(len(self._known)))
        return f"[machine {letter}](#machines-and-versions)"

    def text(self) -> str:
        """The list of all machines that were linked."""
        lines = ["## Machines and versions", ""]
        lines += [f"- **{letter}**: {text}" for text, letter in self._known.items()]
        return "\n".join([*lines, f"- {RECORDS}"])


def describe(document: Document) -> str:
    """Machine and versions in words."""
    environment = document["environment"]
    gpu = environment.get("gpu") or document.get("device")
    packages = environment.get("packages", {})
    named = {label: f"{label} {packages[name]}" for name, label in SHOWN.items() if name in packages}
    machine = [f"{environment.get('cpus', '?')} CPUs", environment.get("platform", ""), str(gpu) if gpu else "no GPU"]
    return "; ".join([", ".join(filter(None, machine)), f"Python {environment.get('python', '?')}", *named.values()])


def _letters(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"A{index}"
