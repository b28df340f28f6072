"""Questions and ranks: candidates, ties, groups, and that nobody's neighbours in a batch matter."""

import dataclasses
import posixpath
import re
from collections import Counter
from math import log2

import numpy as np
import pytest
import slow_reference
import torch
from conftest import dataset_of, small_config
from hypothesis import example, given
from hypothesis import strategies as st

import skiprec.evaluation
from skiprec.dataset import popularity_thirds
from skiprec.errors import ConfigError, TrainingDiverged
from skiprec.evaluation import Evaluator, ModelScorer, draw_candidates, metric_names, rank_metrics, rejected_candidates
from skiprec.evaluation import shuffled_candidates as shuffled
from skiprec.model import SequenceEncoder

N_ITEMS = 60


class TableScorer:
    """Scores by the last item alone, from a table of few values: ties are frequent, and every session has its own."""

    def __init__(self, n_items: int, seed: int = 1) -> None:
        g = torch.Generator().manual_seed(seed)
        self.table = torch.randint(-6, 6, (n_items + 1, n_items + 1), generator=g).float()
        self.seen = []

    def candidate_scores(self, inputs, candidates):
        return self.catalogue_scores(inputs).gather(1, candidates)

    def catalogue_scores(self, inputs):
        items, lengths = inputs.items, inputs.lengths
        self.seen += [row[:n].tolist() for row, n in zip(items, lengths.tolist(), strict=True)]
        return self.table[items.gather(1, lengths[:, None] - 1).squeeze(1)]


class Constant(TableScorer):
    """Scores everything alike."""

    def __init__(self, n_items: int, score: float = 0.0) -> None:
        super().__init__(n_items)
        self.table = torch.full_like(self.table, score)


@pytest.fixture(scope="module")
def some():
    """40 sessions of 4 to 9 items, from a catalogue of 60, with replays and skips."""
    rng = np.random.default_rng(3)
    lengths = rng.integers(4, 10, size=40)
    sessions = [rng.integers(1, 20 if i % 2 else N_ITEMS + 1, size=n).tolist() for i, n in enumerate(lengths)]
    levels = [rng.integers(0, 4, size=n).tolist() for n in lengths]
    return dataset_of(sessions, levels, n_items=N_ITEMS)


def whole_sessions(dataset) -> list[list[int]]:
    return [row[:n].tolist() for row, n in zip(dataset.items, dataset.lengths.tolist(), strict=True)]


def slow_metrics(dataset, split: str, scorer: TableScorer, candidates: torch.Tensor) -> dict[str, float]:
    """Every metric of every group, session by session, from the slow reference."""
    of_group: dict[str, list[dict]] = {group: [] for group in ("", "heard/", "skipped/", "repeat/", "new/")}
    losses = []
    threshold = dataset.manifest.config.skip_threshold
    for session, levels, row in zip(whole_sessions(dataset), dataset.skip_levels.tolist(), candidates, strict=True):
        at = len(session) - (1 if split == "test" else 2)
        inputs, target = session[:at], session[at]
        scores = scorer.table[inputs[-1]].tolist()
        ranks = slow_reference.evaluate_session(scores, inputs, target, row.tolist())
        losses.append(slow_reference.negative_log_share(scores[target], [scores[c] for c in row.tolist() if c]))
        groups = ["", "skipped/" if levels[at] >= threshold else "heard/", "repeat/" if target in inputs else "new/"]
        for group in groups:
            of_group[group].append(ranks)
    metrics = {f"{split}/nll": sum(losses) / len(losses)}
    for kind, prefix in (("sampled", ""), ("full", "full_"), ("full_new", "full_new_")):
        for group, members in of_group.items():
            if kind == "full_new" and group in ("repeat/", "new/"):
                continue
            ranks = [r[kind] for r in members if r[kind] is not None]
            name = f"{split}/{group}{prefix}"
            metrics[f"{name}count"] = len(ranks)
            for k in (1, 5, 10, 20):
                metrics[f"{name}hr_at_{k}"] = np.mean([slow_reference.hit_rate(r, k) for r in ranks])
                metrics[f"{name}ndcg_at_{k}"] = np.mean([slow_reference.ndcg(r, k) for r in ranks])
            metrics[f"{name}mrr"] = np.mean([slow_reference.mrr(r) for r in ranks])
        gap = metrics[f"{split}/heard/{prefix}hr_at_10"] - metrics[f"{split}/skipped/{prefix}hr_at_10"]
        metrics[f"{split}/{prefix}skip_gap"] = gap
    return metrics


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("n_candidates", [5, 1000])
def test_every_metric_of_every_group_is_the_slow_one(some, split, n_candidates):
    """With 1000 candidates asked for there are fewer, so rows end in padding; with 5 there are enough."""
    evaluator = Evaluator(some, split, n_candidates=n_candidates)
    candidates = draw_candidates(some, split, n_candidates)
    scorer = TableScorer(N_ITEMS)
    metrics = evaluator.sampled(scorer) | evaluator.full(scorer)
    assert metrics == pytest.approx(slow_metrics(some, split, scorer, candidates), abs=1e-6)


def test_by_hand():
    """Sessions 1 2 | 3 4 and 1 2 1 | 2 4 of a catalogue of 6: targets 3 (new) and 2 (repeated), scores 6 5 4 3 2 1.

    Session 0: candidates of 1..6 less {1, 2, 3, 4} are 5 and 6, both below 3: rank 1. Full: 1 and 2 are above: 3.
    Full new: nothing is above: 1. Session 1: candidates 3, 5, 6 below: rank 1. Full: 1 is above: 2. Not new.
    """
    dataset = dataset_of([[1, 2, 3, 4], [1, 2, 1, 2, 4]], [[0, 0, 0, 0], [0, 0, 0, 3, 0]], n_items=6)
    scorer = TableScorer(6)
    scorer.table[:] = torch.tensor([9.0, 6, 5, 4, 3, 2, 1])  # padding scores highest, and must not be read
    evaluator = Evaluator(dataset, "val")
    metrics = evaluator.sampled(scorer) | evaluator.full(scorer)
    assert metrics["val/mrr"] == 1
    assert metrics["val/full_mrr"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert metrics["val/full_hr_at_1"] == 0
    assert metrics["val/full_ndcg_at_5"] == pytest.approx((1 / log2(4) + 1 / log2(3)) / 2)
    assert (metrics["val/full_new_mrr"], metrics["val/full_new_count"]) == (1, 1)
    assert (metrics["val/heard/count"], metrics["val/skipped/count"]) == (1, 1)
    assert metrics["val/repeat/full_mrr"] == metrics["val/skipped/full_mrr"] == 1 / 2
    assert "val/skipped/full_new_mrr" not in metrics  # a mean of nothing is no number
    assert metrics["val/skipped/full_new_count"] == 0


def test_the_names_are_those_that_others_rely_on(some):
    evaluator = Evaluator(some, "val")
    metrics = evaluator.sampled(TableScorer(N_ITEMS)) | evaluator.full(TableScorer(N_ITEMS))
    names = "nll hr_at_1 hr_at_5 hr_at_10 hr_at_20 ndcg_at_10 mrr full_hr_at_10 full_new_hr_at_10 full_ndcg_at_10"
    assert {f"val/{name}" for name in names.split()} <= metrics.keys()
    assert {"val/heard/hr_at_10", "val/skipped/hr_at_10", "val/repeat/hr_at_10", "val/skip_gap"} <= metrics.keys()
    assert all(type(value) is float for value in metrics.values())


def test_groups_add_up(some):
    evaluator = Evaluator(some, "test")
    m = evaluator.sampled(TableScorer(N_ITEMS)) | evaluator.full(TableScorer(N_ITEMS))
    assert m["test/count"] == 40
    for one, other in (("heard", "skipped"), ("repeat", "new")):
        assert m[f"test/{one}/count"] + m[f"test/{other}/count"] == 40
        whole = m[f"test/{one}/count"] * m[f"test/{one}/mrr"] + m[f"test/{other}/count"] * m[f"test/{other}/mrr"]
        assert whole / 40 == pytest.approx(m["test/mrr"])
    assert m["test/full_new_count"] == m["test/new/count"]
    assert m["test/heard/full_new_count"] + m["test/skipped/full_new_count"] == m["test/full_new_count"]
    assert m["test/skip_gap"] == m["test/heard/hr_at_10"] - m["test/skipped/hr_at_10"]


@pytest.mark.parametrize("n_candidates", [45, 1000])
@pytest.mark.parametrize("score", [0.0, -3.5])
def test_scoring_everything_alike_gets_no_hits(some, n_candidates, score):
    evaluator = Evaluator(some, "val", n_candidates=n_candidates)
    metrics = evaluator.sampled(Constant(N_ITEMS, score)) | evaluator.full(Constant(N_ITEMS, score))
    hits = {name: value for name, value in metrics.items() if "hr_at" in name or "ndcg" in name}
    assert hits
    assert not any(hits.values())


def test_a_nan_score_is_an_error_and_not_a_rank(some):
    evaluator = Evaluator(some, "val")
    scorer = TableScorer(N_ITEMS)
    scorer.table[evaluator.questions.inputs.items[7, evaluator.questions.inputs.lengths[7] - 1], 5] = torch.nan
    for evaluate in (evaluator.sampled, evaluator.full):
        with pytest.raises(TrainingDiverged, match=r"^val evaluation: a score is nan, so there is no rank"):
            evaluate(scorer)


def test_a_scorer_is_shown_what_comes_before_the_target_and_no_more(some):
    for split, held_back in (("val", 2), ("test", 1)):
        scorer = TableScorer(N_ITEMS)
        Evaluator(some, split).sampled(scorer)
        assert scorer.seen == [session[:-held_back] for session in whole_sessions(some)]


@pytest.mark.parametrize("architecture", ["unidirectional", "bidirectional"])
def test_a_session_does_not_depend_on_the_others_in_its_batch(dataset, architecture, monkeypatch):
    """Metrics of blocks of 1, 7 and 256 sessions, and of each session alone among reversed ones, are the same."""
    torch.manual_seed(1)
    config = dataclasses.replace(small_config(init="torch").model, architecture=architecture)
    scorer = ModelScorer(SequenceEncoder(config, dataset.n_items, dataset.max_length).double().eval())
    evaluator = Evaluator(dataset, "val")
    seen = []
    monkeypatch.setattr(skiprec.evaluation, "target_rank", lambda t, c: seen.append(target_rank(t, c)) or seen[-1])
    from skiprec.metrics import target_rank

    ranks = []
    with torch.no_grad():
        for size in (1, 7, 256):
            monkeypatch.setattr(skiprec.evaluation, "SESSIONS_AT_A_TIME", size)
            for evaluate in (evaluator.sampled, evaluator.full):
                evaluate(scorer)
            ranks.append(torch.cat([r for r in seen]))
            seen.clear()
    n = dataset.n_sessions
    assert [len(r) for r in ranks] == [3 * n] * 3
    for other in ranks[:2]:
        assert torch.equal(other[:n], ranks[2][:n])  # sampled
        assert sorted(other[n:].tolist()) == sorted(ranks[2][n:].tolist())  # full and full_new, block by block


def test_the_model_scores_by_inner_product_with_its_prediction(dataset):
    torch.manual_seed(1)
    model = SequenceEncoder(
        small_config(architecture="bidirectional").model, dataset.n_items, dataset.max_length
    ).eval()
    inputs = Evaluator(dataset, "val").questions.inputs.of(slice(0, 3))
    candidates = torch.tensor([[1, 2], [5, 5], [9, dataset.n_items]])
    with torch.no_grad():
        predicted = model.next_item(inputs.items, inputs.lengths)
        expected = [
            [float(p @ model.items.weight[c]) for c in row] for p, row in zip(predicted, candidates, strict=True)
        ]
        few = ModelScorer(model).candidate_scores(inputs, candidates)
        every = ModelScorer(model).catalogue_scores(inputs)
    assert few.tolist() == [pytest.approx(row, abs=1e-6) for row in expected]
    assert every.shape == (3, dataset.n_items + 1)  # [MSK] is no item
    assert torch.allclose(every.gather(1, candidates), few, atol=1e-6)


def test_rank_metrics_are_means():
    metrics = rank_metrics(torch.tensor([1.0, 2.0, 6.0, 30.0], dtype=torch.float64))
    assert metrics["hr_at_1"] == 1 / 4
    assert metrics["hr_at_5"] == 2 / 4
    assert metrics["hr_at_20"] == 3 / 4
    assert metrics["ndcg_at_10"] == pytest.approx((1 + 1 / log2(3) + 1 / log2(7)) / 4)
    assert metrics["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 6 + 1 / 30) / 4)


# (catalogue, candidates): up to 4 times as many items as candidates are shuffled, more are drawn again.
BOTH_WAYS = pytest.mark.parametrize(("n_items", "n"), [(40, 10), (41, 10)], ids=["shuffled", "rejected"])


def replays(n_sessions: int, n_items: int):
    """The same session again and again: 3 5 3 1 | 7 last."""
    return dataset_of([[3, 5, 3, 1, 7, n_items]] * n_sessions, n_items=n_items)


@BOTH_WAYS
def test_both_ways_are_taken(n_items, n, monkeypatch):
    calls = []
    for name, way in (("shuffled_candidates", shuffled), ("rejected_candidates", rejected_candidates)):
        monkeypatch.setattr(skiprec.evaluation, name, lambda *a, name=name, way=way: calls.append(name) or way(*a))
    draw_candidates(replays(3, n_items), "val", n)
    assert calls == ["shuffled_candidates" if n_items == 40 else "rejected_candidates"]


@BOTH_WAYS
@pytest.mark.parametrize("split", ["val", "test"])
def test_candidates_are_outside_the_session_held_out_items_included_and_without_repeats(n_items, n, split):
    candidates = draw_candidates(replays(200, n_items), split, n)
    assert (candidates.dtype, candidates.shape) == (torch.int32, (200, n))
    for row in candidates.tolist():
        assert len(set(row)) == n
        assert set(row) <= set(range(1, n_items + 1)) - {1, 3, 5, 7, n_items}


@BOTH_WAYS
def test_candidates_are_uniform(n_items, n):
    """Chi-square with 34 or 35 degrees of freedom: above 80 once in some 50,000 draws of this test, which are fixed."""
    drawn = draw_candidates(replays(3000, n_items), "val", n)
    free = [item for item in range(1, n_items + 1) if item not in (1, 3, 5, 7, n_items)]
    for columns in (drawn, drawn[:, :1], drawn[:, -1:]):  # the last one drawn as well as the first
        counts = Counter(columns.flatten().tolist())
        assert sorted(counts) == free
        expected = columns.numel() / len(free)
        assert sum((counts[item] - expected) ** 2 / expected for item in free) < 80


@BOTH_WAYS
def test_the_first_and_the_last_item_can_be_candidates(n_items, n):
    drawn = draw_candidates(dataset_of([[4, 5, 6, 7]] * 200, n_items=n_items), "val", n)
    assert set(drawn.flatten().tolist()) == set(range(1, n_items + 1)) - {4, 5, 6, 7}


@BOTH_WAYS
def test_candidates_depend_on_dataset_split_and_session_alone(n_items, n):
    first = draw_candidates(replays(50, n_items), "val", n)
    torch.manual_seed(99)
    assert torch.equal(first, draw_candidates(replays(50, n_items), "val", n))
    assert not torch.equal(first, draw_candidates(replays(50, n_items), "test", n))
    other = dataclasses.replace(replays(50, n_items))
    other.manifest.digests["dataset"] = "another"
    assert not torch.equal(first, draw_candidates(other, "val", n))
    assert len({tuple(row) for row in first.tolist()}) == 50  # each session its own


@pytest.mark.parametrize("draw", [shuffled, rejected_candidates])
def test_candidates_do_not_depend_on_how_many_sessions_are_drawn_at_once(draw):
    sessions = replays(30, 60).items.numpy()
    rows = np.arange(30, dtype=np.uint64)[:, None]
    whole = draw(7, rows, sessions, 60, 12)
    parts = [draw(7, rows[a : a + 4], sessions[a : a + 4], 60, 12) for a in range(0, 30, 4)]
    assert np.array_equal(whole, np.concatenate(parts))


def test_more_sessions_than_a_block_have_a_row_each():
    candidates = draw_candidates(replays(1030, 41), "val", 10)
    assert len(candidates) == 1030
    assert torch.equal(candidates[:50], draw_candidates(replays(50, 41), "val", 10))


@pytest.mark.parametrize("n", [34, 35, 36, 1000])
def test_where_there_are_fewer_candidates_all_are_taken_then_padding(n):
    """40 items less 5 of the session are 35."""
    candidates = draw_candidates(replays(4, 40), "val", n)
    free = sorted(set(range(1, 41)) - {1, 3, 5, 7, 40})
    assert candidates.shape == (4, n)
    for row in candidates.tolist():
        kept = [item for item in row if item]
        assert len(kept) == min(n, 35)
        assert row[: len(kept)] == kept  # padding comes last
        assert set(kept) <= set(free)
        assert len(set(kept)) == len(kept)


def test_ranks_are_those_of_the_slow_loop_and_nan_where_a_measure_does_not_ask(some):
    """Session by session, by the three measures."""
    evaluator = Evaluator(some, "test", n_candidates=7)
    scorer = TableScorer(N_ITEMS)
    ranks = evaluator.ranks(scorer)
    assert list(ranks) == ["sampled", "full", "full_new"]
    for i, (session, row) in enumerate(zip(whole_sessions(some), draw_candidates(some, "test", 7), strict=True)):
        scores = scorer.table[session[-2]].tolist()
        slow = slow_reference.evaluate_session(scores, session[:-1], session[-1], row.tolist())
        assert {name: None if rank[i].isnan() else rank[i].item() for name, rank in ranks.items()} == slow


@pytest.mark.parametrize("only_targets", ["all", "heard"])
def test_measuring_is_every_metric_of_every_group_from_one_set_of_ranks(some, only_targets):
    """What the single measures say, and HR@10 and counts of the finer groups."""
    evaluator = Evaluator(some, "test", only_targets=only_targets)
    scorer = TableScorer(N_ITEMS)
    metrics, ranks = evaluator.measure(scorer)
    for measure, rank in evaluator.ranks(scorer).items():
        assert torch.equal(ranks[measure].nan_to_num(), rank.nan_to_num())
    single = evaluator.sampled(scorer) | evaluator.full(scorer)
    assert single.items() <= metrics.items()
    finer = evaluator.metrics(ranks, evaluator.finer_groups())
    rest = metrics.keys() - single.keys()
    assert rest == {name for name in finer if name.endswith(("hr_at_10", "count"))}
    assert all(metrics[name] == finer[name] for name in rest)


def test_scorers_are_shown_the_skip_levels_of_the_inputs_and_no_others(some):
    """Of each session those before its target."""
    shown = []

    class Watching(TableScorer):
        def catalogue_scores(self, inputs):
            shown.extend(zip(inputs.skip_levels.tolist(), inputs.lengths.tolist(), strict=True))
            return super().catalogue_scores(inputs)

    Evaluator(some, "val").full(Watching(N_ITEMS))
    for (levels, n), whole, length in zip(shown, some.skip_levels.tolist(), some.lengths.tolist(), strict=True):
        assert n == length - 2
        assert levels == whole[:n] + [0] * (len(levels) - n)


def test_with_heard_targets_alone_skipped_ones_are_in_no_metric(some):
    """The same numbers as the heard group's, whatever the measure."""
    every, heard = Evaluator(some, "val"), Evaluator(some, "val", only_targets="heard")
    scorer = TableScorer(N_ITEMS)
    whole, part = every.sampled(scorer) | every.full(scorer), heard.sampled(scorer) | heard.full(scorer)
    for name in ("hr_at_10", "mrr", "full_hr_at_10", "full_new_mrr", "count", "full_new_count"):
        assert part[f"val/{name}"] == whole[f"val/heard/{name}"]
    assert part["val/skipped/count"] == 0
    assert "val/skip_gap" not in part
    assert part["val/nll"] != whole["val/nll"]
    assert bool(heard.ranks(scorer)["sampled"][every.questions.target_skipped].isnan().all())


def test_nothing_is_left_to_ask_where_no_target_was_heard():
    """Which is said at once, by the data's name."""
    skipped = dataset_of([[1, 2, 3, 4]], [[0, 0, 3, 3]], n_items=6)
    with pytest.raises(ConfigError, match=r"^by hand: no val target was heard, so only_targets 'heard' leaves none$"):
        Evaluator(skipped, "val", only_targets="heard")


def test_finer_groups_are_those_of_a_loop(some):
    """Context, popularity third and length of each target, against a count by hand of what each session says."""
    rng = np.random.default_rng(5)
    contexts = [tuple(rng.integers(0, 3, size=2).tolist()) for _ in range(some.n_sessions)]
    named = dataclasses.replace(
        some, held_out_contexts=torch.tensor(contexts), context_names=("radio", "<b>", "an editor's \n list")
    )
    thirds = popularity_thirds(some.plays).tolist()
    names = {"radio": "radio", "<b>": "_b_", "an editor's \n list": "an editor_s _ list"}
    evaluator = Evaluator(named, "test")
    scorer = TableScorer(N_ITEMS)
    ranks = evaluator.ranks(scorer)
    expected: dict[str, list[float]] = {}
    for i, session in enumerate(whole_sessions(some)):
        context = names[named.context_names[contexts[i][1]]]
        third = ("first", "second", "last")[thirds[session[-1]]]
        for group in (f"context/{context}", f"popularity/{third}", f"length/{len(session)}"):
            expected.setdefault(group, []).append(ranks["full"][i].item())
    metrics = evaluator.metrics({"full": ranks["full"]}, evaluator.finer_groups())
    for group, members in expected.items():
        assert metrics[f"test/{group}/full_count"] == len(members)
        assert metrics[f"test/{group}/full_hr_at_10"] == pytest.approx(np.mean([rank <= 10 for rank in members]))
    assert sum(name.endswith("count") and value > 0 for name, value in metrics.items()) == len(expected)


def test_names_from_data_become_parts_of_metric_names_and_stay_apart():
    """MLflow refuses most signs."""
    assert metric_names(["radio", "a<b", "a>b", "", "a/b"]) == ["radio", "a_b", "a_b_2", "_", "a_b_3"]
    assert metric_names(["a<b", "a>b", "a_b_2", "a_b"]) == ["a_b_3", "a_b_4", "a_b_2", "a_b"]  # its own name stays
    assert metric_names([".", "..", "_", "x" * 300]) == ["__2", "__3", "_", "x" * 200]


@given(st.lists(st.text(st.sampled_from("ab_.<>/ 2é\n")) | st.text(min_size=190, max_size=400), unique=True))
@example(["é" * 200 + "a", "é" * 200 + "b", "_" * 200])
def test_any_names_from_data_become_different_names_that_mlflow_takes(names):
    """By its rules for metrics: these signs, 250 characters, and a path that is as short as it can be."""
    parts = metric_names(names)
    assert len(set(parts)) == len(names)
    for name, part in zip(names, parts, strict=True):
        whole = f"test/context/{part}/full_new_hr_at_10"
        assert re.fullmatch(r"[A-Za-z0-9_. /-]+", whole)
        assert posixpath.normpath(whole) == whole
        assert len(whole) <= 250
        assert part == name or len(name) > 200 or re.search(r"[^A-Za-z0-9_. -]", name) or not name.strip(".")


@pytest.mark.parametrize(
    ("plays", "thirds"),
    [
        # 9 plays: 4 from play 0 on; 2 from 4; 1s from 6, 7, 8. A third is 3.
        ([0, 1, 4, 1, 2, 1], [2, 2, 0, 2, 1, 2]),
        # 6 plays: starts 0, 1, 2, 3, 4, 5, in the order of the index.
        ([0, 1, 1, 1, 1, 1, 1], [2, 0, 0, 1, 1, 2, 2]),
        # One item holds all; what was never played is in the last third.
        ([0, 5, 0], [2, 0, 2]),
    ],
)
def test_thirds_of_plays_by_hand(plays, thirds):
    """An item belongs to the third that its first play falls into."""
    assert popularity_thirds(torch.tensor(plays)).tolist() == thirds
