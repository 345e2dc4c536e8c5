"""Regenerates benchmarks/RESULTS.md and its plots from measured JSON.

    python benchmarks/regenerate.py                   run what this machine can run, then render
    python benchmarks/regenerate.py --only NAME ...   run these sections, then render
    python benchmarks/regenerate.py --gpu             run the sections that need a GPU, then render
    python benchmarks/regenerate.py --long            run the long ones too (models of 2.4 GB, training)
    python benchmarks/regenerate.py --render          run nothing, render what is kept
    python benchmarks/regenerate.py --check           run nothing, write nothing: exit status 1 if RESULTS.md is not
                                                      what the JSON renders to
    python benchmarks/regenerate.py --list            the sections, how each is run, and when each was measured

What lies where:

- `_sections.py` lists the sections in the order of RESULTS.md: name, script, arguments, what it needs.
- `results/NAME.json` is what the section's script wrote with `--export_metrics_json_path`: `{"environment": ...,
  "options": ..., ...}`. It alone holds figures.
- `results/NAME.md` is the section's prose. Its first line is the heading, `## Question?`. Lines that consist of a marker
  are replaced: `{{tables}}` by the script's tables, `{{plot KEY}}` by a picture, and `{{KEY}}` inside a sentence by a
  fact. A section without JSON is a record of an older run: its prose holds its tables, and its first lines say
  when it was measured.

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
"""
