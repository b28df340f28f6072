"""Steps, epochs, early stopping, and going on where a run stopped."""

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import dataset_of, small_config

import skiprec.evaluation
import skiprec.learner
import skiprec.row_kernels
from skiprec.batches import batches
from skiprec.checkpoint import weights_digest
from skiprec.dataset import training_prefix
from skiprec.errors import CheckpointError, ConfigError, TrainingDiverged, TrainingStopped
from skiprec.evaluation import Evaluator
from skiprec.learner import touched_share
from skiprec.train_config import TrainConfig
from skiprec.trainer import SELECTED_BY, Trainer
from skiprec.training_loss import LossParts

VARIANTS = [
    {},
    {"architecture": "bidirectional", "context": "session", "negatives": "batch"},
    {"negative_scope": "random", "norm": "post", "positions": "from_start"},
    {"negative_scope": "popular", "skip_input": True, "session_share": 0.5, "skip_threshold": 1},
]


@pytest.fixture
def deferred_below(request, monkeypatch):
    """A touched share below which the table's updates are deferred: with 0 none is, with 2 all are."""
    monkeypatch.setattr(skiprec.learner, "DEFERRED_BELOW", request.param)


def both_optimizers(test):
    """Run a test with dense Adam, and with Adam that defers what a step does not touch."""
    by_share = pytest.mark.parametrize("deferred_below", [0, 2], ids=["dense", "deferred"], indirect=True)
    return by_share(pytest.mark.usefixtures("deferred_below")(test))


def trainer(dataset, **changes) -> Trainer:
    own = {name: changes.pop(name) for name in ("tracker", "evaluator", "should_stop") if name in changes}
    return Trainer(dataset, small_config(**changes), show_progress=False, **own)


def weights(t: Trainer) -> str:
    return weights_digest(t.model.state_dict())


def copied(state):
    """As a file would hold it: `state` gives the live tensors."""
    tensors, values = state
    return {name: value.clone() for name, value in tensors.items()}, dict(values)


class Scripted(Evaluator):
    """Gives these values of val/hr_at_10, epoch by epoch."""

    def __init__(self, *values: float) -> None:
        self.values = iter(values)

    def sampled(self, scorer) -> dict[str, float]:
        return {SELECTED_BY: next(self.values)}


class Listing:
    """A tracker that keeps a list."""

    def __init__(self) -> None:
        self.metrics = []

    def log_params(self, params) -> None: ...

    def log_metrics(self, metrics, *, epoch) -> None:
        self.metrics.append((epoch, dict(metrics)))

    def log_artifact(self, path) -> None: ...


@both_optimizers
@pytest.mark.parametrize("changes", VARIANTS)
def test_the_same_seed_gives_the_same_and_another_does_not(dataset, changes):
    runs = []
    for seed in (1, 1, 2):
        t = trainer(dataset, seed=seed, max_epochs=2, patience=1, **changes)
        runs.append(([r.metrics for r in t.epochs()], weights(t)))
        torch.rand(7)  # what others draw in between has no say
    assert runs[0] == runs[1]
    assert runs[2][1] != runs[0][1]
    assert runs[2][0] != runs[0][0]


def test_training_neither_reads_nor_moves_the_state_that_others_draw_from(dataset):
    """Torch's global generator: several trainings in one process would disturb each other's numbers."""
    found = []
    for start in (1, 2):
        torch.manual_seed(start)
        before = torch.get_rng_state()
        t = trainer(dataset, dropout=0.5, max_epochs=2, patience=1)
        list(t.epochs())
        assert torch.equal(torch.get_rng_state(), before)
        found.append(weights(t))
    assert found[0] == found[1]


def test_dropout_is_another_at_each_step(dataset):
    """By epoch and number; with the same ones it is the same."""
    losses = []
    for epoch, number in ((1, 1), (1, 1), (1, 2), (2, 1)):
        t = trainer(dataset, dropout=0.5, max_grad_norm=1e-9)
        t.epoch = epoch
        t.model.train()
        batch = next(batches(t.sessions, 16, seed=1, epoch=1))
        # The same negatives for all, so that dropout alone can differ.
        t.learner.draws.start(1, 1, 1)("negatives")
        t.learner.draws.generators["dropout"] = torch.Generator().manual_seed(0)
        negatives = t.learner.draws.generators["negatives"].get_state()
        t.learner.draws.start(t.config.seed, epoch, number)
        t.learner.draws.generators["negatives"].set_state(negatives)
        losses.append(t.learner._step(batch)[0].item())
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


@both_optimizers
def test_trainings_side_by_side_in_threads_are_what_each_is_alone(dataset):
    """Four of two configurations, all at once: metrics and weights bit for bit."""
    changes = [VARIANTS[i % 2] | {"seed": 1 + i // 2, "dropout": 0.3} for i in range(4)]

    def trained(changes):
        t = trainer(dataset, **changes)
        return [r.metrics for r in t.epochs()], weights(t)

    alone = list(map(trained, changes))
    for _ in range(3):
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(trained, changes)) == alone


def test_the_seed_decides_weights_order_and_draws_apart(dataset):
    """Each of the three is another with another seed."""
    first, second = trainer(dataset, seed=1), trainer(dataset, seed=2)
    assert weights(first) != weights(second)
    assert weights(first) == weights(trainer(dataset, seed=1))


@both_optimizers
@pytest.mark.parametrize("changes", VARIANTS)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(dataset, changes):
    whole = trainer(dataset, **changes)
    expected = [(r.epoch, r.metrics, r.is_best) for r in whole.epochs()]
    assert len(expected) == 3
    first = trainer(dataset, **changes)
    for result in first.epochs():
        if result.epoch == 2:
            saved = copied(first.state())
            break
    fresh = trainer(dataset, **changes)
    fresh.restore(*saved)
    assert [(r.epoch, r.metrics, r.is_best) for r in fresh.epochs()] == expected[2:]
    assert weights(fresh) == weights(whole)
    assert (fresh.best_epoch, fresh.best_value) == (whole.best_epoch, whole.best_value)


def test_a_trainer_can_go_back_to_its_own_earlier_state(dataset):
    t = trainer(dataset)
    results = t.epochs()
    next(results)
    saved = copied(t.state())
    expected = [r.metrics for r in results]
    ends = weights(t)
    t.restore(*saved)
    assert [r.metrics for r in t.epochs()] == expected
    assert weights(t) == ends


def test_early_stopping_waits_for_patience_epochs_without_a_better_value(dataset):
    """Best in epoch 2; 3 is worse, 4 equal, which is not better: with a patience of 2, epoch 5 is never run."""
    t = trainer(dataset, max_epochs=9, patience=2, evaluator=Scripted(0.1, 0.3, 0.2, 0.3, 0.9))
    results = list(t.epochs())
    assert [r.epoch for r in results] == [1, 2, 3, 4]
    assert [r.is_best for r in results] == [True, True, False, False]
    assert (t.best_epoch, t.best_value, t.is_finished) == (2, 0.3, True)
    assert list(t.epochs()) == []


def test_patience_starts_again_with_each_better_value(dataset):
    t = trainer(dataset, max_epochs=6, patience=2, evaluator=Scripted(0.1, 0.0, 0.2, 0.1, 0.3, 0.2))
    assert [r.is_best for r in t.epochs()] == [True, False, True, False, True, False]


def test_a_patience_of_0_stops_at_the_first_epoch_that_is_no_better(dataset):
    t = trainer(dataset, max_epochs=9, patience=0, evaluator=Scripted(0.1, 0.2, 0.2, 0.9))
    assert len(list(t.epochs())) == 3


def test_a_first_value_of_0_is_a_best_one(dataset):
    t = trainer(dataset, max_epochs=1, patience=0, evaluator=Scripted(0.0))
    assert [r.is_best for r in t.epochs()] == [True]


def test_an_epochs_losses_are_means_over_sessions(dataset, monkeypatch):
    """Batches of 32, 32, 32 and 24 sessions with losses 1, 2, 3 and 4: their mean is weighed by size."""

    real = skiprec.learner.training_loss

    def constant(model, batch, config, loss_weights, draws, *rows):
        zero, step = 0 * model.head[0].bias.sum(), draws.step[2]
        touched = real(model, batch, config, loss_weights, draws, *rows).touched
        return LossParts(zero + step, (zero + 10 * step).detach(), (zero + 1).detach(), touched)

    monkeypatch.setattr(skiprec.learner, "training_loss", constant)
    (result,) = trainer(dataset, max_epochs=1, patience=0).epochs()
    mean = (32 * (1 + 2 + 3) + 24 * 4) / 120
    assert result.metrics["train/loss"] == pytest.approx(mean)
    assert result.metrics["train/nll"] == pytest.approx(10 * mean)
    assert result.metrics["train/nce"] == 1


def test_draws_are_named_by_seed_epoch_and_step(dataset, monkeypatch):
    seen = []
    real = skiprec.learner.training_loss

    def spy(model, batch, config, loss_weights, draws, *rows):
        seen.append(draws.step)
        return real(model, batch, config, loss_weights, draws, *rows)

    monkeypatch.setattr(skiprec.learner, "training_loss", spy)
    list(trainer(dataset, seed=7, max_epochs=2, patience=1).epochs())
    assert seen == [(7, epoch, step) for epoch in (1, 2) for step in (1, 2, 3, 4)]


def test_the_loss_falls_and_weights_are_trained_in_training_mode_alone(dataset):
    t = trainer(dataset, max_epochs=3, alpha=0.0)
    modes = []
    t.model.last_norm.register_forward_pre_hook(lambda norm, _: modes.append(norm.training))
    losses = [r.metrics["train/loss"] for r in t.epochs()]
    assert losses[2] < losses[1] < losses[0]
    assert modes == ([True] * 4 + [False]) * 3  # four steps, then validation without dropout


def test_metrics_have_the_trackers_names_and_parts_add_up(dataset):
    tracker = Listing()
    t = trainer(dataset, alpha=0.25, beta=2.0, tracker=tracker)
    results = list(t.epochs())
    assert tracker.metrics == [(r.epoch, r.metrics) for r in results]
    m = results[0].metrics
    assert {"train/loss", "train/nll", "train/nce", "val/nll", "val/hr_at_10", "val/ndcg_at_10", "val/mrr"} <= m.keys()
    assert m["train/loss"] == pytest.approx(0.25 * m["train/nce"] + 2 * m["train/nll"], rel=1e-5)
    assert m["train/nce"] > 0
    assert not any(name.startswith("test") for name in m)


@both_optimizers
@pytest.mark.parametrize("only", [{"alpha": 0.0}, {"alpha": 0.5}, {"skip_input": True}])
def test_every_step_is_adam_with_the_configured_numbers(dataset, only):
    """The first step of Adam moves each weight by lr * g / (|g| + eps), the gradient's own size divided out."""
    t = trainer(dataset, learning_rate=0.03, max_grad_norm=1e9, **only)
    for optimizer in t.learner.optimizers.values():
        group = optimizer.param_groups[0]
        assert (group["lr"], group["betas"], group["eps"]) == (0.03, (0.9, 0.999), 1e-8)
        assert group.get("weight_decay", 0.0) == 0.0
    before = [p.detach().clone() for p in t.model.parameters()]
    t.epoch = 1
    t.step(next(batches(t.sessions, 32, seed=1, epoch=1)), 1)
    moved = 0
    for old, p in zip(before, t.model.parameters(), strict=True):
        gradient = p.grad.to_dense()
        expected = old - 0.03 * gradient / (gradient.abs() + 1e-8)
        assert torch.allclose(p.detach(), expected, atol=1e-6)
        moved += int(gradient.any())
    assert moved == len(before)  # no parameter is out of the loss's reach


@both_optimizers
def test_weight_decay_reaches_the_optimizer(dataset):
    """With it every row moves in every step, so nothing can be deferred."""
    t = trainer(dataset, weight_decay=0.1)
    assert t.learner.optimizer_note == "Adam, dense for the item table: weight decay moves every row"
    (optimizer,) = t.learner.optimizers.values()
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


@both_optimizers
@pytest.mark.parametrize("limit", [1e-4, 1e9])
def test_gradients_are_clipped_to_max_grad_norm_before_the_step(dataset, limit):
    t = trainer(dataset, max_grad_norm=limit, max_epochs=1, patience=0)
    norms = []

    def spy(optimizer, args, kwargs):
        norms.append(math.sqrt(sum(p.grad.to_dense().pow(2).sum().item() for p in t.model.parameters())))

    next(iter(t.learner.optimizers.values())).register_step_pre_hook(spy)
    list(t.epochs())
    assert len(norms) == 4
    if limit < 1:
        assert norms == [pytest.approx(limit, rel=0.02)] * 4  # the norm is divided by itself plus 1e-6
    else:
        assert all(1e-3 < norm < limit for norm in norms)


@both_optimizers
def test_gradients_do_not_pile_up(dataset):
    """A second step on the same batch with the same weights has the same gradient."""
    t = trainer(dataset, learning_rate=1e-30, dropout=0.0, max_grad_norm=1e9)
    batch = next(batches(t.sessions, 32, seed=1, epoch=1))
    t.step(batch, 1)
    first = [p.grad.to_dense().clone() for p in t.model.parameters()]
    t.step(batch, 1)
    assert all(torch.allclose(a, p.grad.to_dense()) for a, p in zip(first, t.model.parameters(), strict=True))


def test_a_huge_learning_rate_ends_the_run_with_its_cause(dataset):
    t = trainer(dataset, learning_rate=1e30)
    with pytest.raises(TrainingDiverged, match=r"^epoch 1: mean loss is (nan|inf) \(next-item .*TrainConfig\(seed=1"):
        list(t.epochs())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_epoch(dataset, monkeypatch, value):
    real = skiprec.learner.training_loss

    def bad(model, batch, config, loss_weights, draws, *rows):
        parts = real(model, batch, config, loss_weights, draws, *rows)
        return dataclasses.replace(parts, loss=parts.loss * value) if draws.step[1:] == (2, 4) else parts

    monkeypatch.setattr(skiprec.learner, "training_loss", bad)
    tracker = Listing()
    results = trainer(dataset, tracker=tracker).epochs()
    assert next(results).epoch == 1
    with pytest.raises(TrainingDiverged, match=rf"^epoch 2: mean loss is {value} \(next-item [0-9.]+, contrastive "):
        next(results)
    assert [epoch for epoch, _ in tracker.metrics] == [1]


def test_it_stops_between_two_steps_when_asked(dataset):
    asked = []

    def after_six() -> bool:
        asked.append(True)
        return len(asked) > 6

    t = trainer(dataset, should_stop=after_six)
    results = t.epochs()
    assert next(results).epoch == 1
    with pytest.raises(TrainingStopped, match=r"^stopped in epoch 2, step 3$"):
        next(results)


def test_whoever_iterates_may_stop(dataset):
    t = trainer(dataset)
    for _ in t.epochs():
        break
    assert (t.epoch, t.is_finished) == (1, False)


def test_the_trainer_asks_for_validation_targets_alone(dataset, monkeypatch):
    asked = []
    real = skiprec.evaluation.held_out
    monkeypatch.setattr(skiprec.evaluation, "held_out", lambda d, split: asked.append(split) or real(d, split))
    t = trainer(dataset, max_epochs=1, patience=0)
    list(t.epochs())
    t.measure(t.evaluator)
    assert asked == ["val"]
    assert torch.equal(t.sessions.items, training_prefix(dataset).items)


def test_measuring_has_every_measure_and_group(dataset):
    t = trainer(dataset)
    metrics, ranks = t.measure(t.evaluator)
    names = {"val/hr_at_10", "val/full_hr_at_10", "val/full_new_hr_at_10", "val/popularity/first/full_hr_at_10"}
    assert names <= metrics.keys()
    assert metrics["val/full_hr_at_10"] == (ranks["full"] <= 10).double().mean().item()


def test_a_catalogue_with_nothing_to_draw_is_refused():
    small = dataset_of([[1, 2, 3, 4, 5, 6]], n_items=6)
    with pytest.raises(ConfigError) as caught:
        Trainer(small, small_config(), show_progress=False)
    assert str(caught.value) == (
        "by hand: the catalogue has 6 items and a session up to 6, "
        "so there may be nothing to draw as a negative; expected more items"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"patience": 100, "max_epochs": 100},
            "patience (100) must be smaller than max_epochs (100), or early stopping can never act",
        ),
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"max_epochs": 0, "patience": 0}, "max_epochs is 0, expected at least 1"),
        ({"threads": 0}, "threads is 0, expected at least 1"),
        ({"seed": -1}, "seed is -1, expected 0 or more"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1, expected 0 or more"),
        ({"weight_decay": math.nan}, "weight_decay is nan, expected 0 or more"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0, expected more than 0"),
        ({"learning_rate": math.inf}, "learning_rate is inf, expected more than 0"),
        ({"skip_threshold": 4}, "skip_threshold is 4, expected 1 to 3, or 0 for the dataset's own"),
        ({"session_share": 0.0}, "session_share is 0.0, expected more than 0 and at most 1"),
        ({"session_share": math.nan}, "session_share is nan, expected more than 0 and at most 1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm is 0.0, expected more than 0"),
    ],
)
def test_a_train_config_out_of_range_says_so(settings, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole text is compared below
        TrainConfig(**settings)
    assert str(caught.value) == message


def test_the_defaults_are_those_of_semantics():
    config = TrainConfig()
    assert (config.learning_rate, config.batch_size, config.max_epochs, config.patience) == (0.001, 128, 24, 5)
    assert (config.max_grad_norm, config.weight_decay) == (5.0, 0.0)
    assert (config.skip_threshold, config.session_share, config.only_targets) == (0, 1.0, "all")
    loss = config.loss
    assert loss.skipped_target_weight == 1.0
    assert not config.model.skip_input
    assert (loss.alpha, loss.beta, loss.context, loss.temperature, loss.n_negatives) == (0.5, 0.5, "item", 0.1, 1000)
    assert (loss.negative_scope, loss.anchors, loss.visible_positive, loss.negatives) == (
        "session",
        "all",
        False,
        "session",
    )
    assert (loss.mask_rate, loss.mask_last_only) == (0.2, 0.1)


# Its losses were all finite; the evaluation's message alone would name neither epoch nor settings.
@both_optimizers
def test_a_state_may_be_restored_in_mid_epoch(dataset):
    """What the steps since have left to be made up for does not reach what is restored."""
    t = trainer(dataset, n_negatives=2, batch_size=4)
    next(iter(t.epochs()))
    saved = copied(t.state())
    for number, batch in zip((1, 2, 3), batches(t.sessions, 4, seed=1, epoch=2), strict=False):
        t.step(batch, number)
    t.restore(*saved)
    tensors, _ = t.state()
    assert all(torch.equal(tensors[name], value) for name, value in saved[0].items())


@pytest.mark.parametrize("deferred_below", [0, 2], ids=["dense", "deferred"], indirect=True)
@pytest.mark.usefixtures("deferred_below")
def test_the_compiled_loops_are_given_single_precision(dataset, monkeypatch):
    """In double they run as well, and take twice as long."""
    given, real = set(), skiprec.row_kernels.over_rows

    def spy(kernel, n, *arguments, **options):
        given.update((kernel.__name__, a.dtype) for a in arguments if isinstance(a, torch.Tensor))
        real(kernel, n, *arguments, **options)

    monkeypatch.setattr(skiprec.row_kernels, "over_rows", spy)
    t = trainer(dataset, max_epochs=1, patience=0)
    list(t.epochs())
    of_table = {"read_rows", "square_rows", "update_rows", "flush_rows"} if t.learner.defers else {"sum_rows"}
    of_block = {"attend", "attend_backward", "feed_forward", "feed_forward_backward", "sum_products"}
    assert {name for name, _ in given} == {"score_rows", "fill_bits", "session_softmax", *of_block, *of_table}
    assert {dtype for _, dtype in given} == {torch.float32, torch.int16, torch.int32, torch.int64, torch.bool}


def test_a_state_of_another_optimizer_is_refused(dataset, monkeypatch):
    t = trainer(dataset)
    next(iter(t.epochs()))
    saved = t.state()
    monkeypatch.setattr(skiprec.learner, "DEFERRED_BELOW", 2)
    with pytest.raises(CheckpointError, match=r"^the state is of .*'all'.*, expected .*'table'"):
        trainer(dataset).restore(*saved)


@both_optimizers
def test_validation_after_steps_by_hand_is_of_every_row_as_it_is(dataset):
    t = trainer(dataset, n_negatives=2, batch_size=4)
    for number, batch in zip((1, 2, 3), batches(t.sessions, 4, seed=1, epoch=1), strict=False):
        t.step(batch, number)
    first = t.validate()
    t.learner.flush()
    assert t.validate() == first


@pytest.mark.parametrize("changes", VARIANTS)
def test_deferring_trains_to_the_same_model(dataset, monkeypatch, changes):
    """Few draws, so that most rows miss most steps; their drift is made up for, and the weights are dense Adam's."""
    trained = []
    for below in (0, 2):
        monkeypatch.setattr(skiprec.learner, "DEFERRED_BELOW", below)
        t = trainer(dataset, n_negatives=2, dropout=0.0, batch_size=4, learning_rate=0.001, **changes)
        list(t.epochs())
        trained.append(t)
    dense, deferred = (t.model.items.weight.detach() for t in trained)
    start = trainer(dataset, n_negatives=2, dropout=0.0, **changes).model.items.weight.detach()
    assert (dense - deferred).norm() < 2e-3 * (dense - start).norm()
    assert [list(t.learner.optimizers) for t in trained] == [["all"], ["table", "rest"]]


def test_the_optimizer_is_chosen_by_the_share_of_rows_that_a_step_touches():
    """32 sessions of 6 items and 20 draws are 832 ids: of 10,000 rows 8%, of 1,000 rows 57%."""
    for n_items, share, percent in ((10_000, 0.0798, 8), (1_000, 0.565, 57)):
        small = dataset_of([[1, 2, 3, 4, 5, 6]], n_items=n_items)
        assert touched_share(small_config(), small) == pytest.approx(share, abs=0.001)
        t = trainer(small)
        assert t.learner.defers == (share < 0.5)
        kind = "deferred" if t.learner.defers else "dense"
        assert t.learner.optimizer_note == f"Adam, {kind} for the item table: a step touches {percent}% of its rows"


def test_weights_broken_by_the_last_step_end_the_run_and_name_the_epoch(dataset):
    t = trainer(dataset, learning_rate=1e30, batch_size=120)
    with pytest.raises(TrainingDiverged, match=r"^epoch 1: .*TrainConfig\(seed=1"):
        list(t.epochs())


def test_popular_negatives_are_drawn_by_plays_in_the_training_prefixes(dataset):
    t = trainer(dataset, negative_scope="popular")
    assert torch.equal(t.learner.plays_up_to, dataset.plays.cumsum(0))
    assert trainer(dataset, negative_scope="popular", alpha=0.0).learner.plays_up_to is None
    (first, *_) = t.epochs()
    assert first.metrics["train/nce"] > 0


def test_with_the_whole_catalogue_as_negatives_no_row_is_deferred(dataset):
    large = dataset_of([[1, 2, 3, 4, 5, 6]], n_items=100_000)
    assert touched_share(small_config(negatives="full"), large) == 1
    t = trainer(dataset, negatives="full", alpha=0.0)
    assert not t.learner.defers
    losses = [r.metrics["train/nll"] for r in t.epochs()]
    assert math.log(dataset.n_items) > losses[0] > losses[1] > losses[2]


def test_a_share_of_the_sessions_is_trained_on_and_all_are_evaluated(dataset):
    t = trainer(dataset, session_share=0.25, max_epochs=1, patience=0)
    (result,) = t.epochs()
    assert len(t.sessions.lengths) == 30
    assert result.metrics["val/count"] == 120


def test_the_trainer_trains_by_its_own_threshold(dataset):
    """Evaluation's groups stay as they are."""
    counts = set()
    for threshold in (1, 2, 3):
        t = trainer(dataset, skip_threshold=threshold, max_epochs=1, patience=0)
        assert torch.equal(t.sessions.skipped, t.sessions.skip_levels >= threshold)
        (result,) = t.epochs()
        counts.add(result.metrics["val/skipped/count"])
    assert len(counts) == 1


@pytest.mark.parametrize("architecture", ["unidirectional", "bidirectional"])
def test_skip_input_changes_no_other_initial_weight_and_is_learnt(dataset, architecture):
    without = trainer(dataset, architecture=architecture, init="paper")
    t = trainer(dataset, architecture=architecture, init="paper", skip_input=True)
    state = t.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in without.model.state_dict().items())
    assert not t.model.skip_levels.weight.any()
    list(t.epochs())
    assert t.model.skip_levels.weight[:4].any(1).all()
    assert not t.model.skip_levels.weight[4].any()
