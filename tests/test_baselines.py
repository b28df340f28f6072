"""The baselines on a dataset small enough to work out."""

import pytest
import torch
from conftest import dataset_of

from skiprec.baselines import baselines, evaluate_baselines
from skiprec.dataset import Sessions
from skiprec.evaluation import Evaluator

# Training prefixes 1 2 1 | 3 1 2 | 3 3: plays of 1, 2, 3 are 3, 2, 3. Items 4 and 5 are in held-out rows alone.
SESSIONS = [[1, 2, 1, 2, 4], [3, 1, 2, 4, 5], [3, 3, 4, 3]]


@pytest.fixture
def tiny():
    return dataset_of(SESSIONS, n_items=6)


def inputs_of(items, lengths):
    """Sessions without skips."""
    nothing = torch.zeros_like(items)
    return Sessions(items, nothing.to(torch.int8), nothing.bool(), lengths)


INPUTS = inputs_of(torch.tensor([[1, 2, 1], [3, 1, 2], [3, 3, 0]]), torch.tensor([3, 3, 2]))
EVERY = torch.arange(7).expand(3, 7)


def order(scores: torch.Tensor) -> list[list[int]]:
    """Items from the likeliest, padding left out; equals by number."""
    return [sorted(range(1, 7), key=lambda item: (-row[item], item)) for row in scores.tolist()]


def test_there_are_three(tiny):
    assert list(baselines(tiny)) == ["random", "most popular", "session-popular"]


def test_most_popular_counts_plays_in_training_prefixes(tiny):
    scorer = baselines(tiny)["most popular"]
    assert scorer.catalogue_scores(INPUTS)[:, 1:].tolist() == [[3, 2, 3, 0, 0, 0]] * 3


def test_session_popular_puts_the_sessions_own_tracks_first(tiny):
    scores = baselines(tiny)["session-popular"].catalogue_scores(INPUTS)
    assert order(scores) == [[1, 2, 3, 4, 5, 6], [1, 3, 2, 4, 5, 6], [3, 1, 2, 4, 5, 6]]
    assert scores[0, 2] > scores[0, 3]  # 2 was played here, 3 was played more
    assert scores[2, 1] > scores[2, 2]


@pytest.mark.parametrize("name", ["random", "most popular", "session-popular"])
def test_scores_of_a_few_are_those_of_the_catalogue(tiny, name):
    scorer = baselines(tiny)[name]
    every = scorer.catalogue_scores(INPUTS)
    assert every.shape == (3, 7)
    assert torch.equal(scorer.candidate_scores(INPUTS, EVERY)[:, 1:], every[:, 1:])
    some = torch.tensor([[2, 5], [6, 1], [3, 3]])
    assert torch.equal(scorer.candidate_scores(INPUTS, some), every.gather(1, some))


@pytest.mark.parametrize("name", ["random", "most popular", "session-popular"])
def test_scores_of_a_session_do_not_depend_on_the_others(tiny, name):
    scorer = baselines(tiny)[name]
    every = scorer.catalogue_scores(INPUTS)
    for b in range(3):
        alone = scorer.catalogue_scores(INPUTS.of(slice(b, b + 1)))
        assert torch.equal(alone[0, 1:], every[b, 1:])


def test_random_scores_say_nothing_and_are_the_same_each_time(dataset):
    """The mean rank among 1000 others is near their middle: 120 ranks have a standard error of 1 / sqrt(12 * 120)."""
    scorer = baselines(dataset)["random"]
    n = 1000
    items = torch.randint(1, dataset.n_items, (120, 5), generator=torch.Generator().manual_seed(1))
    inputs = inputs_of(items, torch.full((120,), 5))
    many = torch.arange(1, n + 1).expand(120, n)
    scores = scorer.candidate_scores(inputs, many)
    assert torch.equal(scores, scorer.candidate_scores(inputs, many))
    above = (scores[:, 1:] > scores[:, :1]).double().mean()
    assert abs(above - 0.5) < 4 / (12 * 120) ** 0.5
    assert len(set(scores[0].tolist())) == n


def test_by_hand(tiny):
    """Validation targets 2 (after 1 2 1), 4 (after 3 1 2) and 4 (after 3 3), most popular by plays 3 2 3 0 0 0.

    Candidates are outside the whole session: {3, 5, 6}, {6}, {1, 2, 5, 6}. Ranks: 2 has 3 above: 2. 4 ties with 6:
    1.5. 4 has 1 and 2 above and ties with 5 and 6: 4. Session-popular: 2 was played here: 1; the rest as before.
    """
    found = evaluate_baselines(tiny, Evaluator(tiny, "val"))
    assert found["most popular"]["val/mrr"] == pytest.approx((1 / 2 + 1 / 1.5 + 1 / 4) / 3)
    assert found["session-popular"]["val/mrr"] == pytest.approx((1 + 1 / 1.5 + 1 / 4) / 3)
    assert found["most popular"]["val/repeat/mrr"] == 1 / 2
    # Against the catalogue of 6 the 4 has 1, 2, 3 above and ties with 5 and 6: rank 5; the 2 has 1 and 3 above: 3.
    assert found["most popular"]["val/full_mrr"] == pytest.approx((1 / 3 + 1 / 5 + 1 / 5) / 3)
    # New targets among new items: after 3 1 2 the 4 ties with 5 and 6: 2; after 3 3 it has 1 and 2 above too: 4.
    assert found["most popular"]["val/full_new_mrr"] == pytest.approx((1 / 2 + 1 / 4) / 2)
