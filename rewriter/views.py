"""What can be seen of a conversion: reports, signatures, dry runs, pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rewriter.by_signature import chosen, naming
from rewriter.errors import ConverterStateError, InvalidParameterError
from rewriter.params import check_callable, check_path, check_switch
from rewriter.precision.work import CalibrationWork, work_for_segments
from rewriter.reports.dry_run import DryRun, make_dry_run
from rewriter.reports.nonconversion import nonconversion_table, to_text, write_csv
from rewriter.reports.operations import check_sizes
from rewriter.reports.report import Report
from rewriter.reports.summary import check_line_length, print_with, render_summary
from rewriter.source import Signature
from rewriter.switches import PICTURE, PRINTED, REPORT, Switches
from rewriter.workshop import Track, Workshop

if TYPE_CHECKING:
    from rewriter.reports.page import Shown


class ConversionViews:
    """The part of `Converter` that looks at a conversion and changes nothing.

    Args:
        shop: does the work.
    """

    def __init__(self, shop: Workshop) -> None:
        self._shop = shop
        #: Signature key -> what is made of it, in the order asked for; read and cut, but perhaps not converted yet.
        self._tracks: dict[str, Track] = {}
        self._done = False

    def summary(
        self, line_length: int = 160, detailed: bool = True, print_fn: Callable[[str], object] | None = None
    ) -> None:
        """Prints engines, native nodes with reasons, and coverage.

        Args:
            line_length: characters a line, at least 80.
            detailed: with op counts and shapes.
            print_fn: called with each line; default `print`.

        Raises:
            ConverterStateError: `convert()` has not run.
            InvalidParameterError: line_length is too small, or another argument is of another kind.
        """
        self._need("summary")
        length, full = check_line_length(line_length), check_switch("detailed", detailed)
        show = check_callable("print_fn", print_fn) or print
        for name, report in self.reports.items():
            title = f"Signature {name}\n" if len(self._tracks) > 1 else ""
            print_with(show, title + render_summary(report, length, full))

    @property
    def signature(self) -> Signature:
        """Names, dtypes and shapes of the (first) signature's inputs and outputs.

        Raises:
            ConverterStateError: `convert()` has not run.
        """
        return self._track("signature").conversion.source.signature

    @property
    def signatures(self) -> dict[str, Signature]:
        """All signatures by their keys, in the order asked for.

        Raises:
            ConverterStateError: `convert()` has not run.
        """
        self._need("signatures")
        return {name: track.conversion.source.signature for name, track in self._tracks.items()}

    @property
    def report(self) -> Report:
        """What the conversion did so far, of the (first) signature.

        Raises:
            ConverterStateError: `convert()` has not run.
        """
        return self._shop.report(self._track("report"))

    @property
    def reports(self) -> dict[str, Report]:
        """The same for every signature, by its key.

        Raises:
            ConverterStateError: `convert()` has not run.
        """
        self._need("reports")
        return {name: self._shop.report(track) for name, track in self._tracks.items()}

    def dry_run(
        self, *, sizes: Mapping[str, int] | None = None, default_dim: int = 1, signature_key: str | None = None
    ) -> DryRun:
        """What the conversion would give, without calibration and without building anything.

        Exports, cleans and cuts the model if that is not done; `convert()` then goes on from there.

        Args:
            sizes: dimension name -> the size to count operations for. Default: the first dimension of each input 1,
                the others as in the samples that the model was checked with.
            default_dim: the size of the dimensions that nothing is known of.
            signature_key: which of several signatures; default: the first.

        Returns:
            Coverage, engines, native nodes with reasons, and what other values of `minimum_segment_size` would give;
            printed it is a table, `to_json()` makes it plain data.

        Raises:
            ConverterStateError: the converter is closed.
            ConversionError: the model cannot be read, expressed or reproduced; as `convert()` raises it.
            InvalidParameterError: no such signature, or a size that is none.
        """
        return chosen(self.dry_runs(sizes=sizes, default_dim=default_dim), signature_key)

    def dry_runs(self, *, sizes: Mapping[str, int] | None = None, default_dim: int = 1) -> dict[str, DryRun]:
        """The same for every signature, by its key; see `dry_run`."""
        self._shop.require_open("dry_run")
        check_sizes(sizes, default_dim)
        self._prepare()
        return {
            name: make_dry_run(track.conversion, self._shop.settings.partition, sizes=sizes, default_dim=default_dim)
            for name, track in self._tracks.items()
        }

    def calibration_work(self, *, signature_key: str | None = None) -> CalibrationWork:
        """What calibration would look at, for those who run it elsewhere: see `rewriter.export.ray.calibrate`.

        Exports, cleans and cuts the model if that is not done; `convert()` then goes on from there.

        Args:
            signature_key: which of several signatures; default: the first.

        Raises:
            ConverterStateError: the converter is closed.
            ConversionError: the model cannot be read, expressed or reproduced; as `convert()` raises it.
            InvalidParameterError: no such signature, or the precision mode needs no ranges.
        """
        self._shop.require_open("calibration_work")
        precision = self._shop.precision
        if not precision.recipe.quantizes:
            raise InvalidParameterError(f"precision_mode={precision.recipe.mode!r} needs no calibration")
        self._prepare()
        done = chosen(self._tracks, signature_key).conversion
        segments = done.result.plan.runnable.segments
        return work_for_segments(done.model, done.source.signature, segments, precision.recipe, precision.options)

    def nonconversion_report(
        self,
        path: str | Path | None = None,
        *,
        print_fn: Callable[[str], object] | None = None,
        signature_key: str | None = None,
    ) -> None:
        """Prints which operators do not run in engines, how often, and why (TF_TRT_SHOW_DETAILED_REPORT).

        Args:
            path: file to write as well, in TF-TRT's columns `OP Name|Reason|Count`; None for none.
            print_fn: called with each line; default `print`.
            signature_key: which of several signatures; default: the first.

        Raises:
            ConverterStateError: `convert()` has not run.
            InvalidParameterError: `path` is no path, or `print_fn` no function.
            ArtifactError: the file cannot be written.
        """
        track = self._track("nonconversion_report", signature_key)
        file = None if path is None else check_path("path", path)
        show = check_callable("print_fn", print_fn) or print
        report = self._shop.report(track)
        rows = nonconversion_table(report)
        if file is not None:
            write_csv(rows, file)
        print_with(show, to_text(rows, report.total_nodes))

    def draw(self, path: str | Path, *, expand_engines: bool | None = None, signature_key: str | None = None) -> None:
        """Draws the converted graph, coloured by engine (TF_TRT_EXPORT_GRAPH_VIZ_PATH).

        Args:
            path: file to write: SVG when its name ends in .svg, else DOT.
            expand_engines: True draws the nodes of engines, False one box for each engine; default: the nodes, of a
                model with up to 150.
            signature_key: which of several signatures; default: the first.

        Raises:
            ConverterStateError: `convert()` has not run.
            InvalidParameterError: `path` is no path, or `expand_engines` neither True nor False.
            ArtifactError: the file cannot be written.
        """
        from rewriter.reports.graph_picture import graph_picture  # much to import, and few pictures are drawn

        track = self._track("draw", signature_key)
        file = check_path("path", path)
        expand = None if expand_engines is None else check_switch("expand_engines", expand_engines)
        runnable = self._shop.runnable(track)
        graph_picture(runnable.model, self._shop.report(track), expand_engines=expand).write(file)

    def page(self, path: str | Path, *, signature_key: str | None = None) -> None:
        """Writes the whole report, with a map of the graph to zoom and search, as one HTML file.

        Args:
            path: file to write; it needs no network and no other file.
            signature_key: the only one of several signatures to show; default: all.

        Raises:
            ConverterStateError: `convert()` has not run.
            InvalidParameterError: `path` is no path, or there is no such signature.
            ArtifactError: the file cannot be written.
        """
        from rewriter.reports.page import report_page, write_page  # much to import, and few pages are written

        first = self._track("page", signature_key)
        file = check_path("path", path)
        tracks = [first] if signature_key is not None else list(self._tracks.values())
        write_page(file, report_page("Conversion report", [self._shown(track) for track in tracks]))

    def _shown(self, track: Track) -> Shown:
        from rewriter.reports.page import Shown

        part = self._shop.part(track, engines=True)
        files = tuple(entry for entry, _ in part.engines)
        return Shown(part.model, self._shop.report(track), part.signature, part.ranges, files)

    def _write_requested(self) -> None:
        """What the environment asks for after a conversion: the non-conversion report, a picture."""
        switches = self._shop.settings.switches
        for number, name in enumerate(self._tracks):
            if switches.report is not None:
                path = None if switches.report == PRINTED else _numbered(Path(switches.report), number)
                self.nonconversion_report(path, signature_key=name)
            if switches.graph_picture is not None:
                self.draw(_numbered(switches.graph_picture, number), signature_key=name)

    def _prepare(self, check: Callable[[Signature], object] | None = None) -> None:
        """Reads and cuts the signatures, unless that is done."""
        if self._tracks:
            return
        tracks = []
        keys = self._shop.settings.source.wanted()
        for key in keys:
            with naming(str(key), keys):
                tracks.append(self._shop.prepare(key, check))
        self._tracks = {track.conversion.source.signature.name: track for track in tracks}

    def _need(self, verb: str) -> None:
        if not self._done:
            raise ConverterStateError(f"{verb} needs a converted model: call convert() first")
        self._shop.require_open(verb)

    def _track(self, verb: str, key: str | None = None) -> Track:
        self._need(verb)
        return chosen(self._tracks, key)


def check_writable(switches: Switches) -> None:
    """Refuses files of TF-TRT's variables that cannot be written, before the long work.

    Raises:
        InvalidParameterError: the folder of one is not there, or may not be written to.
    """
    report = None if switches.report in (None, PRINTED) else Path(str(switches.report))
    for name, path in ((REPORT, report), (PICTURE, switches.graph_picture)):
        if path is not None and not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
            raise InvalidParameterError(
                f"{name}={path}: there is no folder {str(path.parent)!r} that can be written to"
            )


def _numbered(path: Path, number: int) -> Path:
    """A file of its own for every signature but the first."""
    return path.with_name(f"{path.stem}.{number}{path.suffix}") if number else path
