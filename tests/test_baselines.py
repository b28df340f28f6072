"""The baselines by hand, and against their definitions written as loops."""

import functools
import os
from collections import Counter

import numpy as np
import pytest
import slow_baselines
import torch
from conftest import dataset_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_prepare import real_logs  # noqa: F401  a fixture

from skiprec.baselines import baselines, evaluate_baselines
from skiprec.baselines._evidence import ByEvidence
from skiprec.baselines._last_item import item_knn
from skiprec.baselines._lists import Incidence
from skiprec.baselines._session_knn import SessionKnn
from skiprec.dataset import Dataset, Sessions, load_dataset, training_prefix
from skiprec.evaluation import CatalogueRanker, Evaluator, Scorer
from skiprec.prepare import prepare_logs

NAMES = ["random", "most popular", "session-popular", "Markov", "item-kNN", "session-kNN"]

# Training prefixes 1 2 1 | 3 1 2 | 3 3: plays of 1, 2, 3 are 3, 2, 3. Items 4 and 5 are in held-out rows alone.
SESSIONS = [[1, 2, 1, 2, 4], [3, 1, 2, 4, 5], [3, 3, 4, 3]]


@pytest.fixture
def tiny():
    return dataset_of(SESSIONS, n_items=6)


def inputs_of(items, lengths):
    """Sessions without skips."""
    nothing = torch.zeros_like(items)
    return Sessions(items, nothing.to(torch.int8), nothing.bool(), lengths)


def session(*items: int) -> Sessions:
    """One session."""
    return inputs_of(torch.tensor([items]), torch.tensor([len(items)]))


INPUTS = inputs_of(torch.tensor([[1, 2, 1], [3, 1, 2], [3, 3, 0]]), torch.tensor([3, 3, 2]))
EVERY = torch.arange(7).expand(3, 7)


def order(scores: torch.Tensor) -> list[list[int]]:
    """Items from the likeliest, padding left out; equals by number."""
    return [sorted(range(1, len(row)), key=lambda item: (-row[item], item)) for row in scores.tolist()]


def evidence(scorer: Scorer, *items: int) -> dict[int, float]:
    """What speaks for items after a session."""
    (row,) = scorer.catalogue_scores(session(*items)).tolist()
    return {item: score for item, score in enumerate(row) if score > 0}


def test_there_are_six(tiny):
    assert list(baselines(tiny)) == NAMES


def test_most_popular_goes_by_plays_in_training_prefixes(tiny):
    scores = baselines(tiny)["most popular"].catalogue_scores(INPUTS)
    assert order(scores) == [[1, 3, 2, 4, 5, 6]] * 3
    assert scores[0, 1] == scores[0, 3]  # equal plays are a tie
    assert scores[0, 4] == scores[0, 5] == scores[0, 6]


def test_session_popular_puts_the_sessions_own_tracks_first(tiny):
    scores = baselines(tiny)["session-popular"].catalogue_scores(INPUTS)
    assert order(scores) == [[1, 2, 3, 4, 5, 6], [1, 3, 2, 4, 5, 6], [3, 1, 2, 4, 5, 6]]
    assert scores[0, 2] > scores[0, 3]  # 2 was played here, 3 was played more
    assert scores[2, 1] > scores[2, 2]


def test_own_tracks_that_training_never_saw_come_before_the_most_popular(tiny):
    scores = baselines(tiny)["session-popular"].catalogue_scores(session(2, 5))
    assert order(scores) == [[2, 5, 1, 3, 4, 6]]


def test_markov_counts_what_came_right_after_the_last_item(tiny):
    """In 1 2 1 | 3 1 2 | 3 3: after 1 came 2 twice, after 2 came 1, after 3 came 1 and 3."""
    scorer = baselines(tiny)["Markov"]
    assert evidence(scorer, 3, 1) == {2: 2}
    assert evidence(scorer, 1, 2) == {1: 1}
    assert evidence(scorer, 2, 3) == {1: 1, 3: 1}
    assert order(scorer.catalogue_scores(session(3, 1))) == [[2, 1, 3, 4, 5, 6]]


def test_item_knn_is_a_damped_cosine_of_the_sessions_of_the_last_item(tiny):
    """Items 1, 2, 3 are in sessions {0, 1}, {0, 1}, {1, 2}: 1 and 2 share two, each shares one with 3."""
    scorer = baselines(tiny)["item-kNN"]
    assert evidence(scorer, 3, 1) == pytest.approx({2: 2 / 22, 3: 1 / 22})
    assert evidence(scorer, 1, 3) == pytest.approx({1: 1 / 22, 2: 1 / 22})


@pytest.mark.parametrize("name", ["Markov", "item-kNN"])
def test_a_last_item_that_training_never_saw_leaves_the_most_popular(tiny, name):
    scorer = baselines(tiny)[name]
    assert evidence(scorer, 1, 4) == {}
    assert order(scorer.catalogue_scores(session(1, 4))) == [[1, 3, 2, 4, 5, 6]]


def test_session_knn_by_hand():
    """After 1 2 3, whose weights are 1, 2, 3 (thirds): three neighbours, and the session itself is none.

    3 7: shares the last item: 3 / 1. 1 2 8: shares 1 and 2, of which 2 is second from the end: (1 + 2) / 2. 1 7: 1 / 3.
    """
    found = SessionKnn(Incidence.of(training_prefix(neighbourhood([[1, 2, 3], [3, 7], [1, 2, 8], [1, 7], [9]])), 9))
    scores = evidence(ByEvidence(torch.ones(10, dtype=torch.int64), found), 1, 2, 3)
    assert scores == pytest.approx({1: 3 / 2 + 1 / 3, 2: 3 / 2, 3: 3, 7: 3 + 1 / 3, 8: 3 / 2})


def test_session_knn_takes_the_last_sessions_that_share_an_item_and_the_nearest_of_these():
    prefixes = [[3, 4], [1, 5], [2, 6], [3, 7], [8, 9]]
    incidence = Incidence.of(training_prefix(neighbourhood(prefixes)), 9)
    scores = {}
    for k, sample_size in ((100, 4), (100, 2), (1, 4), (1, 3)):
        found = SessionKnn(incidence, k=k, sample_size=sample_size)
        scores[k, sample_size] = set(evidence(ByEvidence(torch.ones(10, dtype=torch.int64), found), 1, 2, 3))
    assert scores[100, 4] == {1, 2, 3, 4, 5, 6, 7}
    assert scores[100, 2] == {2, 3, 6, 7}
    assert scores[1, 4] == {3, 7}  # 3 4 is as near, and comes earlier
    assert scores[1, 3] == {3, 7}


def neighbourhood(prefixes: list[list[int]]) -> Dataset:
    """A dataset of these training prefixes."""
    return dataset_of([[*prefix, 9, 9] for prefix in prefixes], n_items=9)


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_a_few_are_those_of_the_catalogue(tiny, name):
    scorer = baselines(tiny)[name]
    every = scorer.catalogue_scores(INPUTS)
    assert every.shape == (3, 7)
    assert torch.equal(scorer.candidate_scores(INPUTS, EVERY)[:, 1:], every[:, 1:])
    some = torch.tensor([[2, 5], [6, 1], [3, 3]])
    assert torch.equal(scorer.candidate_scores(INPUTS, some), every.gather(1, some))


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_a_session_do_not_depend_on_the_others(tiny, name):
    scorer = baselines(tiny)[name]
    every = scorer.catalogue_scores(INPUTS)
    for b in range(3):
        alone = scorer.catalogue_scores(INPUTS.of(slice(b, b + 1)))
        assert torch.equal(alone[0, 1:], every[b, 1:])


def test_random_scores_say_nothing_and_are_the_same_each_time(dataset):
    """The mean rank among 1000 others is near their middle: 120 ranks have a standard error of 1 / sqrt(12 * 120)."""
    n = 1000
    scorer = baselines(dataset_of([[1, 2, 3, 4]], n_items=5000))["random"]
    items = torch.randint(1, 5000, (120, 5), generator=torch.Generator().manual_seed(1))
    inputs = inputs_of(items, torch.full((120,), 5))
    many = torch.arange(1, n + 1).expand(120, n)
    scores = scorer.candidate_scores(inputs, many)
    assert torch.equal(scores, scorer.candidate_scores(inputs, many))
    above = (scores[:, 1:] > scores[:, :1]).double().mean()
    assert abs(above - 0.5) < 4 / (12 * 120) ** 0.5
    assert all(len(set(row)) == n for row in scores.tolist())


def test_by_hand(tiny):
    """Validation targets 2 (after 1 2 1), 4 (after 3 1 2) and 4 (after 3 3), most popular by plays 3 2 3 0 0 0.

    Candidates are outside the whole session: {3, 5, 6}, {6}, {1, 2, 5, 6}. Ranks: 2 has 3 above: 2. 4 ties with 6:
    1.5. 4 has 1 and 2 above and ties with 5 and 6: 4. Session-popular: 2 was played here: 1; the rest as before.
    """
    found = evaluate_baselines(baselines(tiny), Evaluator(tiny, "val"))
    assert found["most popular"]["val/mrr"] == pytest.approx((1 / 2 + 1 / 1.5 + 1 / 4) / 3)
    assert found["session-popular"]["val/mrr"] == pytest.approx((1 + 1 / 1.5 + 1 / 4) / 3)
    assert found["most popular"]["val/repeat/mrr"] == 1 / 2
    # Against the catalogue of 6 the 4 has 1, 2, 3 above and ties with 5 and 6: rank 5; the 2 has 1 and 3 above: 3.
    assert found["most popular"]["val/full_mrr"] == pytest.approx((1 / 3 + 1 / 5 + 1 / 5) / 3)
    # New targets among new items: after 3 1 2 the 4 ties with 5 and 6: 2; after 3 3 it has 1 and 2 above too: 4.
    assert found["most popular"]["val/full_new_mrr"] == pytest.approx((1 / 2 + 1 / 4) / 2)


@st.composite
def logs(draw) -> tuple[list[list[int]], int]:
    """A few short sessions of few items, and the catalogue's size: ties, repeats, equal sessions, unseen items."""
    n_items = draw(st.integers(4, 9))
    items = st.integers(1, draw(st.integers(1, n_items)))
    return draw(st.lists(st.lists(items, min_size=4, max_size=8), min_size=1, max_size=12)), n_items


def of_log(log: tuple[list[list[int]], int]) -> Dataset:
    sessions, n_items = log
    return dataset_of(sessions, n_items=n_items)


def slow_ranks(dataset: Dataset, evaluator: Evaluator, find) -> dict[str, list[float]]:
    """As `Evaluator.ranks`, one session after another; None where a measure does not ask."""
    sessions = [row[:n] for row, n in zip(dataset.items.tolist(), dataset.lengths.tolist(), strict=True)]
    prefixes = [items[:-2] for items in sessions]
    plays = Counter(item for prefix in prefixes for item in prefix)
    every = range(1, dataset.n_items + 1)
    ranks = {"sampled": [], "full": [], "full_new": []}
    for items, asked in zip(sessions, evaluator.asked.tolist(), strict=True):
        inputs, target = (items[:-2], items[-2]) if evaluator.split == "val" else (items[:-1], items[-1])
        assert asked[0] == target
        found = find(prefixes, inputs)
        candidates = [item for item in asked[1:] if item != 0]
        new = [item for item in every if item not in inputs]
        ranks["sampled"].append(slow_baselines.rank(found, plays, target, candidates))
        ranks["full"].append(slow_baselines.rank(found, plays, target, every))
        is_new = target not in inputs
        ranks["full_new"].append(slow_baselines.rank(found, plays, target, new) if is_new else None)
    return ranks


def assert_ranks_equal(dataset: Dataset, scorer: Scorer, find) -> None:
    for split in ("val", "test"):
        evaluator = Evaluator(dataset, split, n_candidates=4)
        ranks = {
            measure: [None if rank != rank else rank for rank in found.tolist()]
            for measure, found in evaluator.ranks(scorer).items()
        }
        assert ranks == slow_ranks(dataset, evaluator, find)


SLOW = {
    "most popular": slow_baselines.most_popular,
    "session-popular": slow_baselines.session_popular,
    "Markov": slow_baselines.markov,
    "item-kNN": slow_baselines.item_knn,
    "session-kNN": slow_baselines.session_knn,
}


@pytest.mark.parametrize("name", SLOW)
@settings(deadline=None, max_examples=50)
@given(log=logs())
def test_ranks_are_those_of_the_definition(name, log):
    dataset = of_log(log)
    assert_ranks_equal(dataset, baselines(dataset)[name], SLOW[name])


@settings(deadline=None, max_examples=50)
@given(log=logs(), k=st.integers(1, 4))
def test_item_knn_keeps_the_nearest(log, k):
    dataset = of_log(log)
    fast = item_knn(Incidence.of(training_prefix(dataset), dataset.n_items), k=k)
    assert_ranks_equal(dataset, ByEvidence(dataset.plays, fast), functools.partial(slow_baselines.item_knn, k=k))


@settings(deadline=None, max_examples=50)
@given(log=logs(), k=st.integers(1, 4), sample_size=st.integers(1, 6))
def test_session_knn_keeps_the_nearest_of_a_small_sample(log, k, sample_size):
    dataset = of_log(log)
    fast = SessionKnn(Incidence.of(training_prefix(dataset), dataset.n_items), k=k, sample_size=sample_size)
    slow = functools.partial(slow_baselines.session_knn, k=k, sample_size=sample_size)
    assert_ranks_equal(dataset, ByEvidence(dataset.plays, fast), slow)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=50)
@given(log=logs())
def test_ranks_in_the_catalogue_are_those_of_the_scores_of_it_all(name, log):
    dataset = of_log(log)
    scorer = baselines(dataset)[name]

    class Dense:
        """The same without a short way to ranks."""

        candidate_scores = staticmethod(scorer.candidate_scores)
        catalogue_scores = staticmethod(scorer.catalogue_scores)

    assert isinstance(scorer, CatalogueRanker)
    assert not isinstance(Dense(), CatalogueRanker)
    for split in ("val", "test"):
        evaluator = Evaluator(dataset, split, n_candidates=4)
        fast, slow = evaluator.ranks(scorer), evaluator.ranks(Dense())
        for measure in ("sampled", "full", "full_new"):
            torch.testing.assert_close(fast[measure], slow[measure], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", SLOW)
def test_ranks_on_a_small_log_are_those_of_the_definition(name, dataset):
    """120 sessions of 10 to 20 items: more positions, neighbours and evidence than the smallest have."""
    assert_ranks_equal(dataset, baselines(dataset)[name], SLOW[name])


@pytest.mark.slow
@pytest.mark.real_logs
@pytest.mark.parametrize("split", ["val", "test"])
def test_session_knn_of_real_sessions_is_that_of_the_definition(real_logs, tmp_path, split):  # noqa: F811
    """By every measure, of every fourth session; of all with SKIPREC_BASELINES=full.

    The catalogue is large: places are made once a session, and counted by numpy.
    """
    prepare_logs([real_logs], tmp_path / "data", progress=False)
    dataset = load_dataset(tmp_path / "data")
    evaluator = Evaluator(dataset, split)
    ranks = {name: found.numpy() for name, found in evaluator.ranks(baselines(dataset)["session-kNN"]).items()}
    sessions = [row[:n] for row, n in zip(dataset.items.tolist(), dataset.lengths.tolist(), strict=True)]
    prefixes = [items[:-2] for items in sessions]
    plays = np.bincount(np.concatenate(prefixes), minlength=dataset.n_items + 1)
    every = np.arange(1, dataset.n_items + 1)
    every_nth = 1 if os.environ.get("SKIPREC_BASELINES") == "full" else 4
    for b in range(0, len(sessions), every_nth):
        items, asked = sessions[b], evaluator.asked[b].numpy()
        inputs, target = (items[:-2], items[-2]) if split == "val" else (items[:-1], items[-1])
        assert asked[0] == target
        places = slow_baselines.places(slow_baselines.session_knn(prefixes, inputs), plays)
        others = every[every != target]
        assert ranks["sampled"][b] == counted(places, target, asked[1:])
        assert ranks["full"][b] == counted(places, target, others)
        new = counted(places, target, np.setdiff1d(others, inputs)) if target not in inputs else np.nan
        np.testing.assert_equal(ranks["full_new"][b], new)


def counted(places: np.ndarray, target: int, others: np.ndarray) -> float:
    """1 + those before the target + half of those beside it."""
    return 1 + (places[others] > places[target]).sum() + (places[others] == places[target]).sum() / 2
