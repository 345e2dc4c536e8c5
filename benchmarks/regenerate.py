"""Regenerates benchmarks/RESULTS.md and its plots from measured JSON.

    python benchmarks/regenerate.py                   run what this machine can run, then render
    python benchmarks/regenerate.py --only NAME ...   run these sections, then render
    python benchmarks/regenerate.py --gpu             run the sections that need a GPU, then render
    python benchmarks/regenerate.py --long            run the long ones too (models of 2.4 GB, training, servers)
    python benchmarks/regenerate.py --render          run nothing, render what is kept
    python benchmarks/regenerate.py --check           run nothing, write nothing: exit status 1 if RESULTS.md is not
                                                      what the JSON renders to
    python benchmarks/regenerate.py --adopt NAME FILE take over what NAME's script wrote elsewhere, then render
    python benchmarks/regenerate.py --list            the sections, how each is run, and when each was measured

What lies where:

- `_sections.py` lists the sections in the order of RESULTS.md: name, script, arguments, what it needs.
- `results/NAME.json` is what the section's script wrote with `--export_metrics_json_path`: `{"environment": ...,
  "options": ..., ...}`. It alone holds figures. A key "record" says that they were taken over from an older table.
- `results/NAME.md` is the section's prose. Its first line is the heading, `## Question?`. The line `{{tables}}` is
  replaced by the script's tables, `{{plot KEY}}` by a picture, and `{{KEY}}` inside a sentence by a fact; while there
  is no JSON, lines with such a marker are left out. What stands between the lines `{{record}}` and `{{end}}` is the
  record of an older run whose JSON was not kept: it is shown, with its date, until the script is run again.
- `results/summary.md` is the top of the page: `{{NAME}}` is the target of a link to a section, `{{NAME.KEY}}` a fact,
  `{{plot NAME.KEY}}` a picture. A line with a figure that has not been measured is left out, and one with
  `{{NAME.record}}` as soon as there are newer figures than those of the record.

What a script of a section has, all three pure and callable without the packages that the script measures (so no
tensorflow, torch, tensorrt, ... at the top of the module); `document` is the JSON as read back by `json.load`:

    def render(document: Mapping[str, Any]) -> str
        Required. The Markdown tables (`_common.format_table`), with what belongs between them (### headings, a line of
        explanation, "PASS: ..." lines). The script prints the same text when it has measured.
    def facts(document: Mapping[str, Any]) -> dict[str, str]
        Optional. Single figures as text, for the prose (`{{KEY}}`) and for the summary at the top (`{{NAME.KEY}}`).
    def plots(document: Mapping[str, Any]) -> dict[str, Chart]
        Optional. Charts (`_plots.Bars`, `_plots.Lines`, `_plots.Points`: plain frozen data, no matplotlib) by key; they
        are drawn to images/NAME_KEY.svg.

The same JSON gives the same bytes, so `git diff` shows what a new run changed.

Sections of a GPU need what only a machine with TensorFlow can make; it travels in the folder that --bundle names:

    python benchmarks/_rivals_models.py DIR/rivals      python benchmarks/runtime_models.py DIR/runtime
    python benchmarks/engine_bundle.py DIR/engines      python benchmarks/runtime_artifact.py DIR/artifacts --make
    python benchmarks/precision_bundle.py DIR/precision
    python benchmarks/fat_artifacts.py DIR/fat --make
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _common import add_project_to_path, laid_out
from _plots import digest, digest_in, draw
from _results_page import Material, PageError, gather_all, page
from _sections import BENCHMARKS, IMAGES, RESULTS, SECTIONS, Section, find

add_project_to_path()

PAGE = BENCHMARKS / "RESULTS.md"
SUMMARY = RESULTS / "summary.md"
#: An absolute path of at least two folders, and its last part.
PATHS = re.compile(r"(?<![\w.:/-])/[\w.+-]+/(?:[\w.+-]+/)*([\w.+-]*)")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    if options.list:
        print("\n".join(listed()))
        return 0
    places = {"bundle": options.bundle} if options.bundle else {}
    try:
        for name, file in options.adopt or ():
            keep(find(name), Path(file))
    except (OSError, ValueError) as error:
        print(f"error: nothing to take over from {file}: {error}", file=sys.stderr)
        return 1
    wanted = [] if options.render or options.check or options.adopt else chosen(options)
    failed = [section.name for section in wanted if not run(section, places)]
    try:
        old = outdated() if options.check else write()
    except PageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        told = f"{error}: pip install 'trt-rewriter[compare]', then regenerate.py --render; new figures are kept"
        print(f"error: {told}", file=sys.stderr)
        return 1
    for path in old:
        print(f"{'out of date' if options.check else 'written'}: {path.relative_to(BENCHMARKS.parent)}")
    if not old:
        word = "what the JSON renders to" if options.check else "as they should be, nothing was written"
        print(f"{PAGE.name} and its pictures are {word}")
    if failed:
        print(f"no figures, the old ones were kept: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed or (options.check and old) else 0


def chosen(options: argparse.Namespace) -> list[Section]:
    """The sections to run: those that were named, else all that the options and the machine allow."""
    if options.only:
        return [find(name) for name in options.only]
    wanted = {"gpu"} if options.gpu else {"cpu", "long"} if options.long else {"cpu"}
    sections = [section for section in SECTIONS if section.needs in wanted]
    without = [section.name for section in sections if _needs_bundle(section) and not options.bundle]
    if without:
        print(f"left out, for they need --bundle DIR: {', '.join(without)}", file=sys.stderr)
    return [section for section in sections if section.name not in without]


def run(section: Section, places: Mapping[str, str]) -> bool:
    """Measures a section; its JSON is replaced only when the script wrote a new one.

    A script whose own criteria are missed ends with status 1 and still has figures: they are kept, and tell it.

    Returns:
        Whether there are new figures.
    """
    command = [sys.executable, str(BENCHMARKS / f"{section.script}.py")]
    command += [argument.format_map(places) for argument in section.arguments]
    print(f"{section.name}: {section.command(places)} (about {section.minutes:g} min) ...", file=sys.stderr, flush=True)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        answer = Path(folder, "result.json")
        quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3")}
        command += ["--export_metrics_json_path", str(answer)]
        status = subprocess.run(command, check=False, env=quiet, cwd=BENCHMARKS.parent).returncode
        found = answer.is_file() and status in (0, 1)
        if found:
            keep(section, answer)
    seconds = time.perf_counter() - started
    told = "figures kept" if found else "no figures"
    print(f"{section.name}: {told}, exit status {status}, {seconds:.0f} s", file=sys.stderr, flush=True)
    return found


def keep(section: Section, answer: Path) -> None:
    """Makes a script's JSON the section's, without folders of the machine that it ran on."""
    document = without_folders(json.loads(answer.read_text(encoding="utf-8")))
    section.json.write_text(laid_out(document) + "\n", encoding="utf-8")


def without_folders(value: Any) -> Any:
    """The same with the last part of every absolute path only (in error texts, for example)."""
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    return PATHS.sub(r"\1", value) if isinstance(value, str) else value


def write() -> list[Path]:
    """Draws the pictures and writes RESULTS.md; what is as it should be is left alone, pictures of nothing go.

    Returns:
        The files that were written.
    """
    materials = gather_all()
    text = page(materials, SUMMARY.read_text(encoding="utf-8"))
    written = []
    for path, material, key in _pictures(materials):
        if not _is_of(path, material, key):
            IMAGES.mkdir(exist_ok=True)
            path.write_text(draw(material.charts[key]), encoding="utf-8")
            written.append(path)
    for path in _left_over(materials):
        path.unlink()
    if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        PAGE.write_text(text, encoding="utf-8")
        written.append(PAGE)
    return written


def outdated() -> list[Path]:
    """Files that are not what the JSON renders to; nothing is drawn for that."""
    materials = gather_all()
    text = page(materials, SUMMARY.read_text(encoding="utf-8"))
    old = [path for path, material, key in _pictures(materials) if not _is_of(path, material, key)]
    same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
    return [*old, *_left_over(materials), *([] if same else [PAGE])]


def _pictures(materials: Sequence[Material]) -> list[tuple[Path, Material, str]]:
    return [(IMAGES / material.image(key), material, key) for material in materials for key in material.charts]


def _left_over(materials: Sequence[Material]) -> list[Path]:
    """Pictures that carry a digest, so were drawn by `write`, and belong to no chart any more."""
    wanted = {path for path, _, _ in _pictures(materials)}
    found = (path for path in sorted(IMAGES.glob("*.svg")) if path not in wanted)
    return [path for path in found if digest_in(path.read_text(encoding="utf-8"))]


def _is_of(path: Path, material: Material, key: str) -> bool:
    return path.is_file() and digest_in(path.read_text(encoding="utf-8")) == digest(material.charts[key])


def _needs_bundle(section: Section) -> bool:
    return any("{bundle}" in argument for argument in section.arguments)


def listed() -> list[str]:
    """The lines of --list, in columns: name, what it needs, minutes of a run, when it was measured, how it is run."""
    cells = [
        (
            section.name,
            section.needs,
            f"{section.minutes:3g} min" if section.script else "",
            _state(section),
            section.command() if section.script else "no script",
        )
        for section in SECTIONS
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def _state(section: Section) -> str:
    """When a section's figures are from, as RESULTS.md tells it."""
    if section.json.is_file():
        document = json.loads(section.json.read_text(encoding="utf-8"))
        if "record" not in document:
            return f"measured {document['environment'].get('date', '')[:10]}".rstrip()
    return f"record of {section.record}" if section.record else "no figures"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run these sections, whatever they need")
    parser.add_argument("--gpu", action="store_true", help="run the sections that need a GPU, not the others")
    parser.add_argument("--long", action="store_true", help="run the long ones of the CPU as well")
    parser.add_argument("--bundle", metavar="DIR", help="what older GPU scripts need from a machine with TensorFlow")
    parser.add_argument("--render", action="store_true", help="run nothing")
    parser.add_argument("--check", action="store_true", help="run and write nothing, say what is out of date")
    parser.add_argument("--adopt", nargs=2, action="append", metavar=("NAME", "FILE"), help="take over measured JSON")
    parser.add_argument("--list", action="store_true", help="list the sections")
    options = parser.parse_args(arguments)
    for name in [*(options.only or ()), *(name for name, _ in options.adopt or ())]:
        try:
            section = find(name)
        except KeyError as error:
            parser.error(error.args[0])
        if not section.script:
            parser.error(f"{name} is a record of figures that no script makes")
        if name in (options.only or ()) and _needs_bundle(section) and not options.bundle:
            parser.error(f"{name} needs --bundle DIR: see the first lines of benchmarks/{section.script}.py")
    return options


if __name__ == "__main__":
    sys.exit(main())
