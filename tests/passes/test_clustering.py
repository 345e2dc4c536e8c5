"""passes.graph.clustering: hazards by name on literal DAGs, properties on random ones, and the baseline beside it."""

import graphlib
import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.graph import clustering
from passes.graph.clustering import Dag, cluster, epochs, late_epochs
from passes.graph.random_dags import FAMILIES

ROOT = Path(__file__).resolve().parents[2]


def load_baseline():
    spec = importlib.util.spec_from_file_location("naive_partition", ROOT / "benchmarks" / "naive_partition.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.naive_clusters


naive_clusters = load_baseline()


def assert_valid(dag, found):
    """Every supported node once; contracted, the graph is acyclic (so each cluster is convex)."""
    assert sorted(n for c in found for n in c) == [n for n, s in enumerate(dag.supported) if s]
    assert all(list(c) == sorted(c) for c in found)
    label = list(range(len(dag.preds)))
    for members in found:
        for member in members:
            label[member] = members[0]
    sorter = graphlib.TopologicalSorter()
    for node, sources in enumerate(dag.preds):
        sorter.add(label[node], *(label[s] for s in sources if label[s] != label[node]))
    sorter.prepare()  # raises CycleError


def covered(found, minimum):
    return sum(len(c) for c in found if len(c) >= minimum)


@st.composite
def dags(draw, largest=24):
    count = draw(st.integers(0, largest))
    preds = [
        sorted(draw(st.sets(st.integers(max(0, node - 8), node - 1), max_size=3))) if node else []
        for node in range(count)
    ]
    supported = draw(st.lists(st.booleans() | st.just(True), min_size=count, max_size=count))
    return Dag.of(preds, supported)


@pytest.fixture(params=["tries", "epochs only"])
def road(request, monkeypatch):
    """Both ways through `cluster`: small graphs are tried in several ways, large ones are not."""
    if request.param == "epochs only":
        monkeypatch.setattr(clustering, "TRIES_MAX", -1)


@pytest.mark.usefixtures("road")
class TestHazards:
    def test_everything_supported_is_one_cluster(self):
        assert cluster(Dag.of([[], [0], [0], [1, 2]], [True] * 4), 3) == ((0, 1, 2, 3),)

    def test_diamond_with_an_unsupported_side(self):
        """0 -> (1 supported, 2 not) -> 3: joining 0 and 3 would make a cycle through 2."""
        dag = Dag.of([[], [0], [0], [1, 2]], [True, True, False, True])
        found = cluster(dag, 1)
        assert_valid(dag, found)
        assert len(found) == 2

    def test_cross_merge(self):
        """a->B, c->D with unsupported a->d' and c->b' crossings: each merge alone is legal, both together are not."""
        #      0 A, 1 C, 2 u(A), 3 u(C), 4 B reads A and u(C), 5 D reads C and u(A)
        dag = Dag.of([[], [], [0], [1], [0, 3], [1, 2]], [True, True, False, False, True, True])
        for absorb in (True, False):
            assert_valid(dag, cluster(dag, 2, absorb=absorb))

    def test_chain_cut_in_the_middle(self):
        dag = Dag.of([[], [0], [1], [2], [3]], [True, True, False, True, True])
        assert cluster(dag, 2) == ((0, 1), (3, 4))

    def test_dead_end(self):
        """An unsupported node that nothing follows does not cut its supported neighbours."""
        assert cluster(Dag.of([[], [0], [0], [2]], [True, False, True, True]), 3) == ((0, 2, 3),)

    def test_nothing_supported(self):
        assert cluster(Dag.of([[], [0]], [False, False]), 1) == ()

    def test_empty_graph(self):
        assert cluster(Dag.of([], []), 3) == ()


def test_absorb_joins_what_is_not_connected():
    dag = Dag.of([[], [0], [], [2], [1, 3]], [True, True, True, True, False])
    assert cluster(dag, 3, absorb=True) == ((0, 1, 2, 3),)
    assert cluster(dag, 3, absorb=False) == ((0, 1), (2, 3))


def test_absorb_leaves_weightless_clusters_alone(monkeypatch):
    monkeypatch.setattr(clustering, "TRIES_MAX", -1)
    dag = Dag.of([[], [0], [], [1, 2]], [True, True, True, False], [1, 1, 0, 0])
    assert cluster(dag, 3) == ((0, 1), (2,))


def test_weights_decide_what_is_large_enough():
    dag = Dag.of([[], [], [0, 1]], [True, True, False], [3, 3, 1])
    assert cluster(dag, 3) == ((0,), (1,))
    assert cluster(dag, 4) == ((0, 1),)


def test_epochs_rise_only_from_supported_to_unsupported():
    dag = Dag.of([[], [0], [1], [2], [0]], [True, False, False, True, True])
    assert epochs(dag) == [0, 1, 1, 1, 0]
    assert late_epochs(Dag.of([[], [], [1], [0, 2]], [True, True, False, True]), [0, 0, 1, 1]) == [1, 0, 1, 1]


@pytest.mark.parametrize(
    ("preds", "supported", "weights", "message"),
    [
        ([[1], []], [True, True], None, "node 0 reads from 1"),
        ([[]], [], None, "as many support flags"),
        ([[]], [True], [], "as many support flags"),
    ],
)
def test_bad_dags_are_refused(preds, supported, weights, message):
    with pytest.raises(ValueError, match=message):
        Dag.of(preds, supported, weights)


@given(dags(), st.integers(1, 4), st.booleans())
def test_clusters_are_convex_and_stable(dag, minimum, absorb):
    found = cluster(dag, minimum, absorb=absorb)
    assert_valid(dag, found)
    assert cluster(dag, minimum, absorb=absorb) == found


@given(dags(), st.integers(1, 4), st.booleans())
def test_the_road_of_large_graphs_is_valid(dag, minimum, absorb):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clustering, "TRIES_MAX", -1)
        found = cluster(dag, minimum, absorb=absorb)
    assert_valid(dag, found)
    if absorb:
        early = epochs(dag)
        assert len(found) >= len({early[n] for n, s in enumerate(dag.supported) if s})


@given(dags(), st.integers(0, 30), st.sampled_from([-1, 100]))
def test_a_search_that_gives_up_costs_clusters_but_no_cycle(dag, budget, tries):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clustering, "SEARCH_BUDGET", 0)
        patch.setattr(clustering, "SEARCH_FLOOR", budget)
        patch.setattr(clustering, "TRIES_MAX", tries)
        assert_valid(dag, cluster(dag, 2))


def test_the_budget_ends_searches_over_long_distances(monkeypatch):
    """Edges over the whole graph make every search long: what the budget does not pay for stays apart, validly."""
    rng = random.Random(4)  # noqa: S311 - reproducible, not secret
    preds = [sorted({rng.randrange(node) for _ in range(3)}) if node else [] for node in range(1500)]
    dag = Dag.of(preds, [rng.random() > 0.4 for _ in preds])
    free = cluster(dag, 3, absorb=False)
    followed = []
    monkeypatch.setattr(clustering, "SEARCH_FLOOR", 0)
    monkeypatch.setattr(clustering, "SEARCH_BUDGET", 1)
    monkeypatch.setattr(clustering, "TRIES_MAX", 0)
    real = clustering._Contraction._reach

    def counted(self, edges, *rest):
        followed.append(len(edges[rest[0]]))
        return real(self, edges, *rest)

    monkeypatch.setattr(clustering._Contraction, "_reach", counted)
    bounded = cluster(dag, 3, absorb=False)
    assert_valid(dag, bounded)
    assert len(bounded) > len(free)
    longest = max(followed)
    assert 0 < sum(followed) <= len(preds) + sum(map(len, preds)) + 2 * longest


def test_a_hub_with_many_followers_is_no_trap():
    """Joining the followers one by one must not look at all of them every time."""
    count = 3000
    dag = Dag.of([[], *[[0]] * count, list(range(1, count + 1))], [True] + [n % 2 == 0 for n in range(count)] + [True])
    found = cluster(dag, 3)
    assert_valid(dag, found)
    assert len(found) == 2


@given(dags(), st.integers(1, 4), st.booleans())
def test_coverage_is_no_less_than_the_baseline(dag, minimum, absorb):
    naive = naive_clusters(dag)
    assert_valid(dag, naive)
    assert covered(cluster(dag, minimum, absorb=absorb), minimum) >= covered(naive, minimum)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("unsupported", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("tries", [True, False])
def test_no_more_clusters_and_no_less_coverage_than_the_baseline(family, unsupported, tries, monkeypatch):
    if not tries:
        monkeypatch.setattr(clustering, "TRIES_MAX", -1)
    for seed in range(3):
        dag = FAMILIES[family](600, unsupported, seed)
        found, naive = cluster(dag, 3), naive_clusters(dag)
        assert_valid(dag, found)
        assert len(found) <= len(naive)
        assert covered(found, 3) >= covered(naive, 3)


def test_the_result_does_not_depend_on_hash_seeds():
    code = (
        "from passes.graph.clustering import cluster\nfrom passes.graph.random_dags import FAMILIES\nimport hashlib\n"
        "print(hashlib.sha256(repr([cluster(b(n, .2, 7), 3, absorb=a) for b in FAMILIES.values() "
        "for n in (500, 6000) for a in (True, False)]).encode()).hexdigest())"
    )
    results = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("0", "1")
    }  # fmt: skip
    assert len(results) == 1


def test_random_families_are_reproducible():
    for build in FAMILIES.values():
        assert build(200, 0.2, 3) == build(200, 0.2, 3)
        assert build(200, 0.2, 3) != build(200, 0.2, 4)
        assert len(build(200, 0.2, 3).preds) == 200
