"""native -> emulated: the node whose lower precision takes the outputs out of the tolerance."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

from passes.base import PassError
from passes.model import Model
from passes.precision.recipe import Recipe
from rewriter.comparing.bisection.exclusion import Exclusion, Names, Trial, find_exclusion
from rewriter.comparing.bisection.gaps import Gap
from rewriter.comparing.bisection.notes import place_notes
from rewriter.comparing.bisection.options import option_line, patterns
from rewriter.comparing.bisection.own import largest, own_gaps
from rewriter.comparing.bisection.report import Bisection, Contribution
from rewriter.comparing.bisection.sides import ModelSide, made
from rewriter.comparing.bisection.subject import Subject
from rewriter.comparing.bisection.walk import Place, ancestors
from rewriter.errors import ArtifactError, ConversionError

_PAIR = ("native", "emulated")
#: A node that is off by more than so many times the tolerance, and by more than rounding explains, is broken.
_BROKEN, _ROUNDED = 10, 0.05
#: Nodes so many steps from each other may be in one kernel of TensorRT.
_NEAR = 4
#: Keeping so many nodes, and more than three quarters of those that are rounded, is no advice.
_MANY = 4


def bisect_emulated(subject: Subject) -> Bisection:
    """Finds the first segment and node whose lowered arithmetic leaves the tolerance, and what to keep out of it.

    Raises:
        ArtifactError: the artifact does not hold the recipe of its engines.
        ConversionError: the engines cannot be emulated, or the model cannot run.
    """
    case = _Case.of(subject)
    outputs = subject.outputs(case.native, case.emulated)
    failed = subject.beyond(outputs)
    limit = subject.limit(failed)
    if not failed:
        return Bisection(*_PAIR, limit)
    place, gaps = subject.find(case.native, case.emulated, case.shared, failed)
    if place is None:
        note = "every value that both have is within the tolerance up to outputs that do not stem from a node"
        return Bisection(*_PAIR, limit, failed, notes=(note,))
    mine = case.worst_own(place.node)
    ranking = _Ranking(case, failed)
    accumulated = mine <= limit
    exclusion, notes = _exclude(case, place, ranking, accumulated=accumulated)
    name = subject.index.names[place.node]
    return Bisection(
        *_PAIR,
        limit,
        failed,
        segment=subject.homes.get(name),
        node=name,
        op_type=subject.index.nodes[place.node].op_type,
        value=place.value,
        difference=gaps[place.value].relative,
        before=place.before,
        own=mine,
        contribution=ranking.first if accumulated else None,
        option=option_line("--keep-nodes", patterns(exclusion.names)) if exclusion else "",
        excluded=exclusion.names if exclusion else (),
        verified=exclusion.trial.worst if exclusion else None,
        passed=exclusion.trial.passed if exclusion else None,
        notes=(*place_notes(subject, place, accumulated=accumulated), *notes),
    )


def own_when_lowered(subject: Subject, node: int) -> float:
    """How far a node's results are off in emulation when it gets the native values; 0.0 where nothing is lowered.

    Args:
        subject: what is bisected.
        node: its number in the index.

    Raises:
        ArtifactError, ConversionError: as `bisect_emulated` raises them.
    """
    case = _Case.of(subject)
    return case.worst_own(node) if case.recipe.changes else 0.0


def near_when_lowered(subject: Subject, node: int) -> tuple[Bisection, int] | None:
    """Where emulation leaves the tolerance by a node's own error, if that is near a node of an engine.

    TensorRT computes neighbours in one kernel, which may hold a value that emulation rounds (or lets overflow), and
    then do so at its end: it goes wrong some nodes behind the one that emulation finds, or before it.

    Args:
        subject: what is bisected.
        node: its number in the index.

    Returns:
        (what emulation finds, steps from there down to the node; negative where it comes behind the node), or None.

    Raises:
        ArtifactError, ConversionError: as `bisect_emulated` raises them.
    """
    if not _Case.of(subject).recipe.changes:
        return None
    found = bisect_emulated(subject)
    if not found.node or found.own is None or found.own <= found.tolerance:
        return None
    index, wanted = subject.index, subject.index.positions([found.node])[0]
    if subject.homes.get(index.names[wanted]) != subject.homes.get(index.names[node]):
        return None
    for sign, edges in ((1, index.preds), (-1, index.succs)):
        reached, seen = {node}, {node}
        for steps in range(1, _NEAR + 1):
            reached = {other for number in reached for other in edges[number]} - seen
            if wanted in reached:
                return found, sign * steps
            seen |= reached
    return None


@dataclasses.dataclass(frozen=True)
class _Case:
    """Both sides, and what else is computed with them.

    Attributes:
        subject: what is bisected.
        recipe: the arithmetic of its engines.
        native, emulated: the two sides.
        shared: names of values that both have.
    """

    subject: Subject
    recipe: Recipe
    native: ModelSide
    emulated: ModelSide
    shared: frozenset[str]

    @classmethod
    def of(cls, subject: Subject) -> _Case:
        artifact = subject.artifact
        data = artifact.params.get("recipe")
        try:
            if not isinstance(data, Mapping):
                raise ValueError("it does not hold its recipe")
            recipe = Recipe.from_json(data)
        except ValueError as error:
            raise ArtifactError(f"{artifact.path} cannot be emulated: {error}: convert the model again") from error
        return cls.with_recipe(subject, recipe)

    @classmethod
    def with_recipe(cls, subject: Subject, recipe: Recipe) -> _Case:
        """With engines of this arithmetic."""
        emulated = _emulated(subject, recipe)
        shared = frozenset(subject.values).intersection(made(emulated))
        return cls(
            subject, recipe, ModelSide(subject.native, "native"), ModelSide(emulated, "emulated", honest=True), shared
        )

    def own(self, nodes: Sequence[int]) -> dict[str, Gap]:
        """Value -> its gap when its node gets the native values, for the results of these nodes."""
        makes = self.subject.index.makes
        targets = [v for number in sorted(nodes) for v in makes[number] if v in self.shared]
        return own_gaps(
            self.native,
            self.emulated.model,
            self.shared,
            targets,
            self.subject.feeds,
            self.subject.sizes,
            honest=True,
            most=self.subject.most,
        )

    def worst_own(self, node: int) -> float:
        """The largest of a node's results; 0.0 where none of them could be compared."""
        return max((item.relative for item in self.own([node]).values()), default=0.0)

    def keeping(self, names: Names) -> Recipe:
        """The recipe with these nodes kept, exactly as `--keep-nodes` keeps them."""
        return dataclasses.replace(self.recipe, keep_nodes=(*self.recipe.keep_nodes, *patterns(names)))

    def following(self, names: Names) -> Names:
        """With these nodes kept, the names of the first node that is broken then: far beyond the tolerance by itself.

        What rounds a little is left to the ranking.
        """
        case = _Case.with_recipe(self.subject, self.keeping(names))
        failed = self.subject.beyond(self.subject.outputs(case.native, case.emulated))
        place, _ = self.subject.find(case.native, case.emulated, case.shared, failed) if failed else (None, {})
        if place is None or case.worst_own(place.node) <= max(_BROKEN * self.subject.limit(failed), _ROUNDED):
            return ()
        return self.subject.inside(place)

    def attempt(self, names: Names) -> Trial:
        """The outputs with these nodes kept."""
        model = _emulated(self.subject, self.keeping(names))
        outputs = self.subject.outputs(self.native, ModelSide(model, "emulated", honest=True))
        judged = [gap.relative for name, gap in outputs.items() if name in self.subject.limits]
        return Trial(max(judged, default=0.0), not self.subject.beyond(outputs))


class _Ranking:
    """The nodes that lowering changes, by what each adds on its own; measured when it is asked for, and once.

    Args:
        case: both sides.
        failed: public names of the outputs beyond their limits.
    """

    def __init__(self, case: _Case, failed: Mapping[str, float]) -> None:
        self._case, self._failed = case, failed
        self._nodes: list[tuple[int, float]] | None = None

    @functools.cached_property
    def lowered(self) -> list[int]:
        """The nodes in engines that the outputs are computed with, in topological order."""
        subject = self._case.subject
        above = ancestors(subject.index, subject.tensors(self._failed))
        return [number for number in sorted(above) if subject.index.names[number] in subject.homes]

    @property
    def nodes(self) -> list[tuple[int, float]]:
        """(number in the index, own difference), the largest first."""
        if self._nodes is None:
            subject = self._case.subject
            gaps = self._case.own(self.lowered)
            best: dict[int, float] = {}
            for value in largest(gaps):
                best.setdefault(subject.index.producer[value], gaps[value].relative)
            self._nodes = list(best.items())
        return self._nodes

    @property
    def first(self) -> Contribution | None:
        """The largest one."""
        if not self.nodes:
            return None
        number, own = self.nodes[0]
        index, homes = self._case.subject.index, self._case.subject.homes
        return Contribution(index.names[number], index.nodes[number].op_type, homes.get(index.names[number]), own)

    def share(self, names: Names) -> tuple[int, int]:
        """(how many of the nodes that are off on their own these names keep, how many such nodes there are)."""
        kept = set(names)
        units = [self._case.subject.excluded(number) for number, _ in self.nodes]
        return sum(kept.issuperset(unit) for unit in units), len(units)

    def rankings(self) -> Iterator[list[Names]]:
        """What must be named to keep each of them; then the same with what only moves or chooses values behind it.

        Such a node adds nothing where it reads rounded values, but rounds those of a node that is kept. Those behind no
        other come last.
        """
        subject, ranked = self._case.subject, [number for number, _ in self.nodes]
        yield [subject.excluded(number) for number in ranked]
        exact = set(self.lowered).difference(ranked)
        units = []
        for number in ranked:
            members, stack = [number], list(subject.index.succs[number])
            while stack:
                follower = stack.pop()
                if follower in exact:
                    exact.remove(follower)
                    members.append(follower)
                    stack.extend(subject.index.succs[follower])
            units.append(members)
        units += [[number] for number in sorted(exact)]
        yield [tuple(name for number in unit for name in subject.excluded(number)) for unit in units]


def _exclude(
    case: _Case, place: Place, ranking: _Ranking, *, accumulated: bool
) -> tuple[Exclusion | None, tuple[str, ...]]:
    """What to keep out of lower precision, and what to say of it."""
    subject = case.subject
    first = subject.inside(place)
    if accumulated or not first:
        if not ranking.nodes:
            return None, ("no node in an engine is off on its own: there is nothing to keep",)
        first = subject.excluded(ranking.nodes[0][0])
    exclusion = find_exclusion(first, case.following, ranking.rankings, case.attempt)
    many = exclusion.trial.passed and len(exclusion.names) >= _MANY  # only then it is worth to measure all
    kept, lowered = ranking.share(exclusion.names) if many else (0, 0)
    if kept >= _MANY and 4 * kept > 3 * lowered:
        note = (
            f"this precision cannot keep the tolerance: {kept} of the {lowered} nodes that it rounds would have to be "
            "kept out of it; give a larger --tolerance, or convert with a higher precision_mode"
        )
        return None, (note,)
    notes = [f"the option was tried in emulation: {exclusion.runs} run(s) over {len(subject.feeds)} sample(s)"]
    if not exclusion.trial.passed:
        notes.append(
            "keeping the nodes that are off most on their own was not enough either: let the accuracy guard search, "
            "with --max-rel-diff and --accuracy-inputs"
        )
    elif exclusion.names != first:
        notes.append(f"keeping only {first[0]!r} leaves a difference of {exclusion.first.worst:.1e}")
    return exclusion, tuple(notes)


def _emulated(subject: Subject, recipe: Recipe) -> Model:
    from rewriter.precision.emulation import emulated_artifact

    try:
        return emulated_artifact(subject.artifact.model, recipe, subject.artifact.ranges)
    except PassError as error:
        raise ConversionError(f"the engines cannot be emulated: {error}") from error
