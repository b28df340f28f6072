"""From a session in the log's own ids to the next tracks: the trainer's scores, what is left out, what is refused."""

import contextlib
import dataclasses
import os

import numpy as np
import pytest
import torch
from conftest import small_config
from hypothesis import given, settings
from hypothesis import strategies as st

from skiprec.dataset import held_out
from skiprec.errors import RequestError
from skiprec.evaluation import ModelScorer
from skiprec.model import SequenceEncoder
from skiprec.recommend import Recommender
from skiprec.requests import Session, parse_session, read_sessions

KINDS = [
    {},
    {"architecture": "bidirectional"},
    {"skip_input": True},
    {"architecture": "bidirectional", "skip_input": True, "positions": "from_start", "norm": "post"},
]
FUZZED = int(os.environ.get("SKIPREC_FUZZED", "300"))


def made(dataset, **config) -> tuple[SequenceEncoder, Recommender]:
    """An untrained encoder with every weight drawn, and what answers with it."""
    torch.manual_seed(3)
    shape = dataclasses.replace(small_config(**config).model, init="torch")
    model = SequenceEncoder(shape, dataset.n_items, dataset.max_length).eval()
    if model.skip_levels is not None:
        torch.nn.init.normal_(model.skip_levels.weight)
    ids = dataset.item_ids()
    return model, Recommender(model, ids, max_length=dataset.max_length, skip_threshold=2)


def sessions_of(dataset, split="test"):
    """The inputs of every question, in the log's own ids."""
    ids, inputs = dataset.item_ids(), held_out(dataset, split).inputs
    return [
        Session([ids[i - 1] for i in items[:n]], levels[:n])
        for items, levels, n in zip(
            inputs.items.tolist(), inputs.skip_levels.tolist(), inputs.lengths.tolist(), strict=True
        )
    ]


@pytest.fixture(scope="module")
def recommender(dataset):
    return made(dataset)[1]


@pytest.mark.parametrize("config", KINDS)
def test_scores_and_order_are_those_of_the_trainer(dataset, config, monkeypatch):
    """By evaluation's own scorer, over every validation and test question; in blocks that do not divide them."""
    monkeypatch.setattr("skiprec.recommend.SESSIONS_AT_ONCE", 7)
    model, recommender = made(dataset, **config)
    ids = dataset.item_ids()
    for split in ("val", "test"):
        expected = ModelScorer(model).catalogue_scores(held_out(dataset, split).inputs)[:, 1:]
        found = recommender.recommend_many(sessions_of(dataset, split), k=20, exclude="nothing")
        for one, scores in zip(found, expected, strict=True):
            assert one.unknown == []
            assert one.scores == pytest.approx(scores.sort(descending=True).values[:20].tolist(), abs=1e-5)
            assert [scores[ids.index(item)].item() for item in one.items] == pytest.approx(one.scores, abs=1e-5)
            assert len(set(one.items)) == 20


def test_one_session_is_answered_as_among_many(dataset, recommender):
    for session, among in zip(
        sessions_of(dataset)[:9], recommender.recommend_many(sessions_of(dataset), k=5), strict=False
    ):
        alone = recommender.recommend(session.items, session.skip_levels, k=5)
        assert alone.items == among.items
        assert alone.scores == pytest.approx(among.scores, abs=1e-5)


@pytest.mark.parametrize(
    ("exclude", "out"), [("session", {0, 1, 2}), ("skipped", {0}), ("heard", {1, 2}), ("nothing", set())]
)
def test_what_is_excluded_is_not_recommended_and_all_else_is(dataset, recommender, exclude, out):
    """Of a session of three: skipped at level 3, heard, and at level 1, which the threshold of 2 counts as heard."""
    ids = dataset.item_ids()
    found = recommender.recommend(ids[:3], [3, 0, 1], k=10**6, exclude=exclude)
    assert set(ids) - set(found.items) == {ids[i] for i in out}
    assert found.scores == sorted(found.scores, reverse=True)


def test_of_a_long_session_the_last_items_count_and_none_is_recommended(dataset, recommender):
    """The first of 25 changes no score, but stays out."""
    ids, n = dataset.item_ids(), dataset.max_length
    long, last = ids[: n + 5], ids[5 : n + 5]
    found = recommender.recommend(long, k=10**6)
    of_last = recommender.recommend(last, k=10**6)
    scores = dict(zip(of_last.items, of_last.scores, strict=True))
    assert set(ids) - set(found.items) == set(long)
    assert found.scores == pytest.approx([scores[item] for item in found.items])


def test_unknown_items_are_left_out_and_named(dataset, recommender):
    """As if they had not been there; where nothing is left there is no answer."""
    ids = dataset.item_ids()
    found, none, plain = recommender.recommend_many(
        [
            Session(["what", ids[0], "?", ids[1]], [2, 0, 0, 2]),
            Session(["what"]),
            Session(ids[:2], [False, True]),
        ],
        k=4,
    )
    assert (found.items, found.unknown) == (plain.items, ["what", "?"])
    assert found.scores == pytest.approx(plain.scores)
    assert (none.items, none.scores, none.unknown) == ([], [], ["what"])


def test_true_stands_for_the_threshold_of_the_data(dataset):
    """A model that is told skip levels answers alike."""
    _, recommender = made(dataset, skip_input=True)
    ids = dataset.item_ids()
    said = recommender.recommend(ids[:3], [True, False, np.bool_(True)])
    assert said == recommender.recommend(ids[:3], [2, 0, 2])
    assert said.scores != recommender.recommend(ids[:3], [3, 0, 2]).scores


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "session 1: items is empty, expected at least one id"),
        (("t1",), "session 1: items is 't1', expected a list"),
        (([3],), "session 1, position 1: the item is 3, expected an id as text"),
        ((["a", None],), "session 1, position 2: the item is None, expected an id as text"),
        ((["a"], [1, 2]), "session 1: 1 items and 2 skip levels, expected as many of both"),
        ((["a"], ["1"]), "session 1, position 1: the skip level is '1', expected 0 to 3, or true or false"),
        ((["a"], [float("nan")]), "session 1, position 1: the skip level is nan, expected 0 to 3, or true or false"),
        ((["a"], [4]), "session 1, position 1: the skip level is 4, expected 0 to 3, or true or false"),
        ((["a"], 1), "session 1: skip_levels is 1, expected a list"),
    ],
)
def test_a_session_that_cannot_be_is_refused_with_its_place(recommender, arguments, message):
    with pytest.raises(RequestError) as caught:
        recommender.recommend_many([Session(*arguments)])
    assert str(caught.value) == message


@pytest.mark.parametrize("k", [0, -1, True, 2.0, "3", None])
def test_how_many_is_a_whole_number_from_one_on(recommender, dataset, k):
    with pytest.raises(RequestError, match=r"^k is .*, expected a whole number from 1 on$"):
        recommender.recommend_many([Session(dataset.item_ids()[:1])], k=k)


@pytest.mark.parametrize("exclude", ["all", "", None, 3, ["session"]])
def test_what_is_excluded_is_one_of_four(recommender, dataset, exclude):
    with pytest.raises(RequestError, match="expected one of session, skipped, heard, nothing"):
        recommender.recommend_many([Session(dataset.item_ids()[:1])], exclude=exclude)


def test_the_command_lines_form_of_a_session():
    """Ids may hold colons: only a known word after the last one is a level."""
    assert parse_session("a, b:skipped,c:1,spotify:track:x,d:3:skipped") == Session(
        ["a", "b", "c", "spotify:track:x", "d:3"], [0, True, 1, 0, True]
    )
    for text in ("", "a,,b", "a,:skipped"):
        with pytest.raises(RequestError, match="no id in"):
            parse_session(text)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: is not JSON"),
        ("[1]", r"line 2: found \[1\], expected an object with items and, if known, skip_levels"),
        ('{"items": ["a"], "skips": [1]}', "line 2: found .*, expected an object with items"),
        ("[" * 100_000, "line 2: is not JSON"),
    ],
)
def test_sessions_from_a_file_are_checked_line_by_line(tmp_path, line, message):
    path = tmp_path / "sessions.jsonl"
    path.write_text(f'{{"items": ["a", "b"], "skip_levels": [0, 2]}}\n{line}\n')
    with pytest.raises(RequestError, match=message):
        read_sessions(path)
    path.write_text('{"items": ["a", "b"], "skip_levels": [0, 2]}\n{"items": ["c"]}\n')
    assert read_sessions(path) == [Session(["a", "b"], [0, 2]), Session(["c"], None)]


scraps = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4) | st.tuples(inner) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def fuzzed(dataset):
    return made(dataset)[1]


@settings(max_examples=FUZZED, deadline=None)
@given(items=scraps, levels=scraps, k=scraps, exclude=scraps, real=st.booleans())
def test_whatever_is_asked_is_answered_or_refused_as_a_request(fuzzed, items, levels, k, exclude, real):
    """With no other exception than that of a request."""
    session = Session(fuzzed.item_ids[:2] if real else items, levels)
    with contextlib.suppress(RequestError):
        (found,) = fuzzed.recommend_many([session], k=k, exclude=exclude)
        assert len(found.items) <= k
