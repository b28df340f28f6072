"""A learner that is used again: what a training comes to does not depend on what was trained with it before."""

import dataclasses
import itertools
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import small_config

import skiprec.learner
from skiprec.batches import batches
from skiprec.checkpoint import weights_digest
from skiprec.config import flatten
from skiprec.errors import TrainingDiverged
from skiprec.learner import Learner, Learners, shape_of
from skiprec.trainer import Trainer

CPU = torch.device("cpu")
SAME_SHAPE = {
    "seed": 9,
    "learning_rate": 0.02,
    "alpha": 0.9,
    "beta": 0.1,
    "max_epochs": 3,
    "patience": 0,
    "only_targets": "heard",
}
"""All that a learner can change."""
OTHER_SHAPE = {
    "n_layers": 2,
    "feed_forward": 8,
    "positions": "from_start",
    "norm": "post",
    "activation": "relu",
    "visible_positive": True,
    "mask_last_only": 0.5,
    "precision": "bfloat16",
    "alpha": 0.0,
    "weight_decay": 0.1,
    "batch_size": 16,
    "max_grad_norm": 1.0,
    "skip_threshold": 3,
    "session_share": 0.5,
    "threads": 2,
    "dim": 8,
    "n_heads": 1,
    "dropout": 0.3,
    "init": "torch",
    "skip_input": True,
    "architecture": "bidirectional",
    "context": "session",
    "temperature": 0.2,
    "negative_scope": "popular",
    "anchors": "heard",
    "skipped_target_weight": 0.5,
    "negatives": "batch",
    "n_negatives": 7,
    "mask_rate": 0.5,
}
"""What is built into a step."""


@pytest.fixture(params=[0, 2], ids=["dense", "deferred"], autouse=True)
def deferred_below(request, monkeypatch):
    """Both optimisers of the item table."""
    monkeypatch.setattr(skiprec.learner, "DEFERRED_BELOW", request.param)


def trained(dataset, learners=None, n_epochs=2, **changes):
    """Metrics and everything that the next epoch would depend on."""
    config = small_config(**{"max_epochs": 2, "patience": 1} | changes)
    trainer = Trainer(dataset, config, learners=learners, show_progress=False)
    metrics = [result.metrics for result in itertools.islice(trainer.epochs(), n_epochs)]
    tensors, values = trainer.state()
    return metrics, weights_digest(tensors), values


@pytest.mark.parametrize("name", SAME_SHAPE)
def test_a_training_in_a_used_learner_is_what_it_is_in_a_new_one(dataset, name):
    """Metrics, weights and moments bit for bit, whatever was learnt before, and with each value that may change."""
    learners = Learners()
    first = trained(dataset, learners)
    (learner,) = learners.kept
    changed = trained(dataset, learners, **{name: SAME_SHAPE[name]})
    assert learners.kept == [learner]
    assert changed == trained(dataset, **{name: SAME_SHAPE[name]})
    assert changed[1] != first[1] or name in ("max_epochs", "patience", "only_targets")
    assert trained(dataset, learners) == first
    assert learners.kept == [learner]


@pytest.mark.parametrize("changes", [{"architecture": "bidirectional"}, {"skip_input": True}, {"alpha": 0.0}], ids=str)
def test_other_models_are_used_again_as_well(dataset, changes):
    """Whose tables have other rows, more parameters, or no contrastive loss."""
    learners = Learners()
    trained(dataset, learners, seed=5, learning_rate=0.1, **changes)
    (learner,) = learners.kept
    assert trained(dataset, learners, **changes) == trained(dataset, **changes)
    assert learners.kept == [learner]


def test_a_learner_left_in_the_midst_of_its_work_is_used_again(dataset):
    """Stopped within an epoch; broken by a huge learning rate; put back to an earlier state: nothing is left of it."""
    learners, expected = Learners(), trained(dataset)

    def begun(**changes):
        return Trainer(dataset, small_config(**changes), learners=learners, show_progress=False)

    stopped = begun(seed=3, max_epochs=2, patience=1)
    saved = {name: value.clone() for name, value in stopped.state()[0].items()}
    stopped.epoch = 1
    for number, batch in enumerate(batches(stopped.sessions, 32, seed=3, epoch=1), start=1):
        stopped.step(batch, number)
    assert trained(dataset, learners) == expected
    with pytest.raises(TrainingDiverged):
        list(begun(learning_rate=1e30).epochs())
    assert trained(dataset, learners) == expected
    put_back = begun(seed=3, max_epochs=2, patience=1)
    next(put_back.epochs())
    put_back.learner.restore(saved)
    # A step that is captured from now on reads these, and the next training sets them.
    assert all(group["lr"] is put_back.learner.rate for group in groups(put_back.learner))
    assert trained(dataset, learners, learning_rate=0.02) == trained(dataset, learning_rate=0.02)
    assert all(group["lr"] is put_back.learner.rate for group in groups(learners.kept[0]))


def groups(learner) -> list[dict]:
    """Of its optimisers."""
    return [group for optimizer in learner.optimizers.values() for group in optimizer.param_groups]


def test_steps_by_hand_are_those_of_a_new_learner(dataset):
    """After a validation, which leaves the model without dropout."""
    learners, found = Learners(), []
    trained(dataset, learners, dropout=0.5)
    for kept in (learners, Learners()):
        trainer = Trainer(dataset, small_config(dropout=0.5), learners=kept, show_progress=False)
        batch = next(batches(trainer.sessions, 32, seed=1, epoch=1))
        found.append(trainer.step(batch, 1).tolist())
    assert found[0] == found[1]


@pytest.mark.parametrize(("place", "part"), [(0, 2), (1, 1)])
def test_alpha_and_beta_are_read_where_a_captured_step_reads_them(dataset, place, part):
    """A step's loss changes by what its part of it counts for, with no word to the configuration."""
    learner = Learners().take(dataset, small_config(dropout=0.0, learning_rate=1e-30), CPU)
    batch = next(batches(learner.sessions, 32, seed=1, epoch=1))
    before = learner.step(batch, 1, 1).tolist()
    learner.loss_weights[place] += 2
    after = learner.step(batch, 1, 1).tolist()
    assert after[1:] == before[1:]
    assert after[0] - before[0] == pytest.approx(2 * before[part], rel=1e-5)


def test_a_learner_whose_step_raised_is_not_used_again(dataset, monkeypatch):
    """Were it on a GPU and being captured, its generators and its stream would be left as they are then."""
    learners = Learners()
    broken = Trainer(dataset, small_config(), learners=learners, show_progress=False)
    with monkeypatch.context() as changed:
        changed.setattr(skiprec.learner, "clip_gradients", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(broken.epochs())
    assert trained(dataset, learners) == trained(dataset)
    assert broken.learner not in learners.kept


def test_learners_are_of_one_thread(dataset):
    learners = Learners()
    learners.take(dataset, small_config(), CPU)
    with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match=r"^these learners are another thread's"):
        pool.submit(learners.take, dataset, small_config(), CPU).result()


def test_a_learner_serves_for_its_own_shape_alone(dataset, monkeypatch):
    """Whatever else is changed makes a new one; the old one is given up before, with its memory."""
    monkeypatch.setattr("gc.collect", lambda: None)  # the old ones are held here, so it would be asked for each
    learners = Learners()
    for name, value in OTHER_SHAPE.items():
        learner = learners.take(dataset, small_config(), CPU)
        assert learners.take(dataset, small_config(), CPU) is learner
        other = learners.take(dataset, small_config(**{name: value}), CPU)
        assert other is not learner, name
        assert learners.kept == [other]
    learner = learners.take(dataset, small_config(), CPU)
    learner = elsewhere(learners, learner, dataset, torch.device("cpu", 0))
    elsewhere(learners, learner, dataclasses.replace(dataset), learner.device)


def elsewhere(learners, learner, dataset, device) -> Learner:
    """A new one for another dataset or device."""
    other = learners.take(dataset, small_config(), device)
    assert other is not learner
    assert learners.take(dataset, small_config(), device) is other
    return other


def test_the_memory_of_a_learner_is_free_before_the_next_is_made(dataset, monkeypatch):
    learners, alive = Learners(), []
    learner = learners.take(dataset, small_config(), CPU)
    learner.itself = learner  # a cycle
    old = weakref.ref(learner)
    del learner
    monkeypatch.setattr(skiprec.learner, "Learner", lambda *args: (alive.append(old()), Learner(*args))[1])
    learners.take(dataset, small_config(batch_size=16), CPU)
    assert alive == [None]


def test_where_there_is_room_a_learner_of_each_shape_is_kept(dataset, monkeypatch):
    """Arms that take turns, as in a confirming study; where there is none any more, the one unused for longest goes."""
    room = iter([True, True, False, True])
    monkeypatch.setattr(skiprec.learner, "has_room", lambda device: next(room))
    learners, arms = Learners(), [{"alpha": 0.0}, {"context": "item"}, {"context": "session"}]
    for seed in (1, 2):
        for arm in arms:
            assert trained(dataset, learners, seed=seed, **arm) == trained(dataset, seed=seed, **arm)
    assert [learner.config.loss.alpha > 0 for learner in learners.kept] == [False, True, True]
    first, second, third = learners.kept
    learners.take(dataset, small_config(alpha=0.0), CPU)
    assert learners.kept == [second, third, first]
    fourth = learners.take(dataset, small_config(batch_size=16), CPU)
    assert learners.kept == [third, first, fourth]


def test_a_shape_is_a_configuration_that_many_share():
    """And each setting was looked at: by its value, or of alpha whether it is 0."""
    assert {*SAME_SHAPE, *OTHER_SHAPE} == set(flatten(small_config()))
    assert shape_of(small_config()) == shape_of(small_config(**SAME_SHAPE))
    assert shape_of(small_config()) != shape_of(small_config(alpha=0.0))
    assert shape_of(shape_of(small_config(alpha=0.0))) == shape_of(small_config(alpha=0.0))
