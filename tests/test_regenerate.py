"""RESULTS.md is what the kept JSON renders to; how it is rendered, drawn and measured again."""

import importlib
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
HEAVY = ("tensorflow", "keras", "tf2onnx", "tensorrt", "tensorrt_rtx", "onnxruntime", "torch", "jax", "matplotlib")
ENVIRONMENT = {
    "date": "2026-01-02 03:04", "python": "3.11.7", "platform": "Linux x86_64", "cpus": 2, "load": 0.5, "gpu": None,
    "packages": {"onnx": "1.2.3", "six": "9"},
}  # fmt: skip


@pytest.fixture(scope="module")
def module():
    """Imports a module of benchmarks/ by name."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def regenerate(module):
    return module("regenerate")


@pytest.fixture(scope="module")
def pages(module):
    return module("_results_page")


@pytest.fixture(scope="module")
def plots(module):
    return module("_plots")


@pytest.fixture(scope="module")
def sections(module):
    return module("_sections")


@pytest.fixture
def material(pages, sections, plots):
    """Makes a section's material."""

    def make(prose, *, record="", script="speed", measured=True, name="speed", told=None):
        section = sections.Section(name, "Part", script, ("--runs", "3"), record=record)
        if not measured:
            return pages.Material(section, prose)
        bars = plots.Bars("How fast", "ms", ["a"], {"ours": [1.0]})
        document = {"environment": ENVIRONMENT, **(told or {})}
        return pages.Material(section, prose, document, "| table |", {"best": "7 ms"}, {"all": bars})

    return make


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_the_page_and_its_pictures_are_what_the_json_renders_to(regenerate):
    assert regenerate.outdated() == [], "run: python benchmarks/regenerate.py --render"


def test_every_section_has_a_script_that_renders(module, sections):
    for section in sections.SECTIONS:
        if section.script:
            script = module(section.script)
            assert callable(script.render), section.name
            assert callable(getattr(script, "facts", dict)), section.name
            assert callable(getattr(script, "plots", dict)), section.name
        else:
            assert section.needs == "record", section.name
            assert section.record, section.name


def test_names_and_headings_of_sections_are_theirs_alone(pages, sections):
    materials = pages.gather_all()
    for values in ([s.name for s in sections.SECTIONS], [pages.anchor(m.title) for m in materials]):
        assert len(set(values)) == len(values)
    known = {f"{section.name}{suffix}" for section in sections.SECTIONS for suffix in (".md", ".json")}
    assert {path.name for path in sections.RESULTS.iterdir()} - known == {"summary.md"}


def test_kept_figures_tell_their_machine_and_options(sections):
    for section in sections.SECTIONS:
        if section.json.is_file():
            document = json.loads(section.json.read_text(encoding="utf-8"))
            assert document["environment"]["date"], section.name
            assert "options" in document or "record" in document, section.name
            places = re.findall(
                r'"/\w+/[^"]*|/(?:home|root|tmp|work)/[^"\s]*', section.json.read_text(encoding="utf-8")
            )
            assert places == [], f"{section.name} tells folders of the machine"


def test_links_of_the_page_lead_somewhere(pages):
    text = (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8")
    anchors = {pages.anchor(line.lstrip("# ")) for line in text.splitlines() if line.startswith("#")}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif "://" not in target:
            assert (BENCHMARKS / target).exists(), target
    assert "{{" not in text


def test_rendering_needs_nothing_of_what_was_measured():
    block = f"import sys\nfor name in {HEAVY!r}: sys.modules[name] = None\n"
    code = f"{block}sys.path.insert(0, {str(BENCHMARKS)!r})\nimport regenerate\nregenerate.outdated()\n"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# --- one section ------------------------------------------------------------------------------------------------------


def test_markers_are_replaced(pages, material):
    prose = "## How fast?\n\nThe best is {{best}}.\n\n{{tables}}\n\n{{plot all}}\n\nMore."
    text = pages.section_text(material(prose), pages.Machines())
    assert text == (
        "## How fast?\n\n`python benchmarks/speed.py --runs 3`: measured 2026-01-02 03:04 UTC on "
        "[machine A](#machines-and-versions), load 0.5 at its end.\n\nThe best is 7 ms.\n\n| table |\n\n"
        "![How fast](images/speed_all.svg)\n\nMore."
    )


def test_without_figures_the_record_is_shown_with_its_date(pages, material):
    prose = "## How fast?\n\nAbout.\nThe best is {{best}}.\n\n{{tables}}\n\n{{record}}\n| old |\n{{end}}\n\nMore."
    text = pages.section_text(material(prose, record="2026-01-01", measured=False), pages.Machines())
    assert "record of 2026-01-01: its figures were kept in this text only; not run since." in text
    assert text.endswith("About.\n\n| old |\n\nMore.")
    text = pages.section_text(material(prose, measured=False), pages.Machines())
    assert "not measured yet (`python benchmarks/regenerate.py --only speed`)." in text
    new = pages.section_text(material(prose, record="2026-01-01"), pages.Machines())
    assert "| old |" not in new
    assert "record" not in new
    assert "| table |" in new


def test_figures_of_an_older_table_say_so(pages, material):
    old = material("## How fast?\n\n{{tables}}", record="2026-01-01", told={"record": "2026-01-01, rounded"})
    text = pages.section_text(old, pages.Machines())
    assert "record of 2026-01-01, rounded; not run since." in text
    assert "machine" not in text


@pytest.mark.parametrize(
    ("prose", "message"),
    [
        ("## A?\n\n{{tables}}\n\n{{worst}}", "no fact 'worst'; those of speed.py: best"),
        ("## A?\n\n{{tables}}\n\n{{plot best}}", "no plot 'best'; those of speed.py: all"),
        ("## A?\n\nNothing.", "no line {{tables}}"),
        ("## A?\n\n{{tables}}\n{{record}}", "{{record}} has no {{end}}"),
    ],
)
def test_prose_that_does_not_fit_is_an_error(pages, material, prose, message):
    with pytest.raises(pages.PageError, match=re.escape(message)):
        pages.section_text(material(prose), pages.Machines())


def test_prose_begins_with_its_heading(pages, material):
    with pytest.raises(pages.PageError, match="the first line must be the heading"):
        _ = material("How fast?").title


def test_figures_that_the_script_cannot_render_are_an_error(pages, sections, module, tmp_path, monkeypatch):
    section = sections.Section("export_speed", "Part", "export_speed")
    monkeypatch.setattr(sections, "RESULTS", tmp_path)
    section.prose.write_text("## A?\n\n{{tables}}\n")
    section.json.write_text(json.dumps({"environment": ENVIRONMENT}))
    with pytest.raises(pages.PageError, match=r"is not what export_speed\.py renders now .*--only export_speed"):
        pages.gather(section)
    section.prose.unlink()
    with pytest.raises(pages.PageError, match="every section needs its prose"):
        pages.gather(section)


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_summary_leaves_out_what_was_not_measured(pages, material):
    new = material("## New?\n\n{{tables}}", name="new")
    old = material("## Old, really?\n\n{{record}}\n1\n{{end}}", name="old", measured=False, record="2026-01-01")
    summary = "# Results\n\n[new]({{new}}) {{new.best}}\n{{new.record}}\n[old]({{old}}) {{old.best}}\n7, {{old.record}}"
    text = pages.page([new, old], summary)
    assert text.startswith("# Results\n\n[new](#new) 7 ms\n7, record of 2026-01-01\n\n## Contents\n")
    assert "- **Part**\n  - [New?](#new) · 2026-01-02\n  - [Old, really?](#old-really) · record of 2026-01-01\n" in text
    assert "- **A**: 2 CPUs, Linux x86_64, no GPU; Python 3.11.7; onnx 1.2.3\n" in text
    assert text == pages.page([new, old], summary)


def test_the_summary_names_sections_that_exist(pages, material):
    with pytest.raises(pages.PageError, match="no section is called 'nobody'"):
        pages.page([material("## A?\n\n{{tables}}")], "{{nobody.best}}")


def test_machines_are_told_apart_by_device_and_versions(pages):
    machines = pages.Machines()
    here, later = {"environment": ENVIRONMENT}, {"environment": {**ENVIRONMENT, "date": "2027", "load": 3.0}}
    gpu = {"environment": {**ENVIRONMENT, "gpu": "NVIDIA H100"}}
    letters = [machines.link(document) for document in (here, gpu, later)]
    assert [link[9] for link in letters] == ["A", "B", "A"]
    assert "- **B**: 2 CPUs, Linux x86_64, NVIDIA H100; " in machines.text()


@pytest.mark.parametrize(
    ("title", "target"),
    [("Does it, really?", "does-it-really"), ("On a GPU: a & b", "on-a-gpu-a--b"), ("tf2onnx_x 2.5", "tf2onnx_x-25")],
)
def test_anchors_are_those_of_github(pages, title, target):
    assert pages.anchor(title) == target


# --- pictures ---------------------------------------------------------------------------------------------------------


def charts(plots):
    groups = ["one", "two"]
    return [
        plots.Bars("Grouped", "ms", groups, {"a": [1.0, None], "b": [-2.0, 0.5]}, line=1.0, places=1),
        plots.Bars("Stacked", "s", groups, {"a": [1.0, 2.0], "b": [0.0, 0.5]}, stacked=True, places=0),
        plots.Lines("Lines", "n", "s", {"a": [(1, 0.1), (10, 2.0)]}, log_x=True, log_y=True, dashed=["a"]),
        plots.Points("Points", "n", "s", {"a": [(1, 0.1, "x")], "b": [(2, 3.0, "")]}, log_y=True),
    ]


@pytest.mark.parametrize("number", range(4))
def test_a_chart_is_drawn_to_the_same_bytes_and_knows_what_it_is_of(plots, number):
    pytest.importorskip("matplotlib")
    chart = charts(plots)[number]
    picture = plots.draw(chart)
    assert picture == plots.draw(chart)
    assert picture.startswith("<?xml")
    assert picture.endswith("</svg>\n")
    assert plots.digest_in(picture) == plots.digest(chart)
    assert len({plots.digest(other) for other in charts(plots)}) == 4


def test_a_picture_that_was_not_drawn_here_has_no_digest(plots):
    assert plots.digest_in("<svg></svg>") is None


# --- measuring again --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(regenerate, sections, tmp_path, monkeypatch):
    """A folder of benchmarks with one script, whose text is written by the test."""
    for place in (regenerate, sections):
        monkeypatch.setattr(place, "RESULTS", tmp_path / "results")
        monkeypatch.setattr(place, "IMAGES", tmp_path / "images")
        monkeypatch.setattr(place, "BENCHMARKS", tmp_path)
    (tmp_path / "results").mkdir()
    return tmp_path


def script(folder, body):
    text = """
    import json, sys
    *arguments, option, path = sys.argv[1:]
    assert option == "--export_metrics_json_path"
    """
    (folder / "speed.py").write_text(textwrap.dedent(text) + body)


@pytest.mark.parametrize(("status", "kept"), [(0, True), (1, True), (2, False)])
def test_figures_are_kept_when_the_script_ends_as_scripts_do(regenerate, sections, folder, status, kept):
    script(folder, f"json.dump({{'told': arguments}}, open(path, 'w'))\nsys.exit({status})\n")
    section = sections.Section("speed", "Part", "speed", ("{bundle}/x", "--runs", "3"))
    section.json.write_text("old")
    assert regenerate.run(section, {"bundle": "B"}) is kept
    text = section.json.read_text()
    assert (json.loads(text) == {"told": ["B/x", "--runs", "3"]}) if kept else text == "old"


def test_figures_of_another_machine_are_taken_over_without_its_folders(regenerate, sections, folder, monkeypatch):
    told = {
        "rows": [{"why": "no file '/home/me/x/model.onnx' (1/2 of https://a.org/b/c, /dev)", "n": 1.5, "none": None}]
    }
    (folder / "out.json").write_text(json.dumps(told))
    monkeypatch.setattr(regenerate, "write", list)
    assert regenerate.main(["--adopt", "rivals", str(folder / "out.json")]) == 0
    (row,) = json.loads(sections.find("rivals").json.read_text())["rows"]
    assert row == {"why": "no file 'model.onnx' (1/2 of https://a.org/b/c, /dev)", "n": 1.5, "none": None}


def test_what_cannot_be_taken_over_is_one_line(regenerate, sections, folder, capsys):
    (folder / "broken.json").write_text("{")
    for file in ("broken.json", "none.json"):
        assert regenerate.main(["--adopt", "rivals", str(folder / file)]) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"error: nothing to take over from {folder / file}: ")
        assert said.count("\n") == 1


def test_a_script_without_figures_leaves_the_old_ones(regenerate, sections, folder):
    script(folder, "")
    section = sections.Section("speed", "Part", "speed")
    section.json.write_text("old")
    assert regenerate.run(section, {}) is False
    assert section.json.read_text() == "old"


@pytest.mark.parametrize(
    ("arguments", "needs"), [([], {"cpu"}), (["--long"], {"cpu", "long"}), (["--gpu", "--bundle", "B"], {"gpu"})]
)
def test_what_is_run_by_default(regenerate, sections, arguments, needs):
    found = regenerate.chosen(regenerate._parse(arguments))
    assert found == [section for section in sections.SECTIONS if section.needs in needs]


def test_without_a_bundle_its_sections_are_left_out_and_told(regenerate, capsys):
    assert regenerate.chosen(regenerate._parse(["--gpu"])) == []
    assert "left out, for they need --bundle DIR: rivals, engine_run, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [("x", "no section 'x'; there are: "), ("gpu_runs", "no script makes"), ("engine_run", "needs --bundle DIR")],
)
def test_sections_that_cannot_be_run(regenerate, capsys, name, message):
    with pytest.raises(SystemExit):
        regenerate._parse(["--only", name])
    assert message in capsys.readouterr().err


def test_pictures_of_charts_that_are_gone_go(regenerate, plots, folder, monkeypatch):
    pytest.importorskip("matplotlib")
    (folder / "images").mkdir()
    (folder / "results" / "summary.md").write_text("# Results\n")
    monkeypatch.setattr(regenerate, "SUMMARY", folder / "results" / "summary.md")
    monkeypatch.setattr(regenerate, "PAGE", folder / "RESULTS.md")
    monkeypatch.setattr(regenerate, "gather_all", list)
    drawn, other = folder / "images" / "old_all.svg", folder / "images" / "logo.svg"
    drawn.write_text(plots.draw(charts(plots)[0]))
    other.write_text("<svg></svg>")
    assert regenerate.outdated() == [drawn, folder / "RESULTS.md"]
    assert regenerate.write() == [folder / "RESULTS.md"]
    assert not drawn.exists()
    assert other.exists()
    assert regenerate.outdated() == []
    assert regenerate.write() == []


def test_without_matplotlib_the_figures_are_kept_and_the_way_is_told(regenerate, capsys, monkeypatch):
    def write():
        raise ModuleNotFoundError("No module named 'matplotlib'")

    monkeypatch.setattr(regenerate, "write", write)
    assert regenerate.main(["--render"]) == 1
    assert "pip install 'trt-rewriter[compare]', then regenerate.py --render" in capsys.readouterr().err


def test_list_tells_every_section(regenerate, sections, capsys):
    assert regenerate.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [section.name for section in sections.SECTIONS]
    by_name = {line.split()[0]: line for line in lines}
    assert "min" not in by_name["gpu_runs"]
    starts = [by_name["gpu_runs"].index("record of "), by_name["gpu_runs"].index("no script")]
    assert starts == [by_name["runtime_gpu"].index("record of "), by_name["runtime_gpu"].index("python benchmarks/")]


def test_list_tells_when_figures_are_from(regenerate, sections, tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "RESULTS", tmp_path)
    section = sections.Section("one", "Part", "script", record="2026-01-02")
    assert regenerate._state(section) == "record of 2026-01-02"
    section.json.write_text('{"environment": {"date": "2026-03-04 05:06"}}')
    assert regenerate._state(section) == "measured 2026-03-04"
    section.json.write_text('{"environment": {}, "record": "2026-01-02; rounded"}')
    assert regenerate._state(section) == "record of 2026-01-02"


@pytest.mark.parametrize(("option", "word"), [("--check", "what the JSON renders to"), ("--render", "nothing was")])
def test_where_nothing_is_to_be_done_it_is_told_in_one_line(regenerate, capsys, monkeypatch, option, word):
    for name in ("write", "outdated"):
        monkeypatch.setattr(regenerate, name, list)
    assert regenerate.main([option]) == 0
    said = capsys.readouterr().out
    assert said.startswith("RESULTS.md and its pictures are ")
    assert word in said
    assert said.count("\n") == 1


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=50),
        lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=9), inner, max_size=6),
        max_leaves=25,
    )
)
def test_json_is_laid_out_without_a_change(value):
    sys.path.insert(0, str(BENCHMARKS))
    try:
        common = importlib.import_module("_common")
    finally:
        sys.path.remove(str(BENCHMARKS))
    assert json.loads(common.laid_out(value)) == value
