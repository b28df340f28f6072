"""How long a study takes: from the cells that ran, or run, to the seconds that are left. Trials in, seconds out."""

import heapq
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from study.queue import Cell, attempts, cell_status, facts, is_abandoned

CELLS_FOR_FIRST = 2
"""After so many complete cells the estimate is kept, to be compared with what the study took."""
COSTLY = ("architecture", "batch_size", "dim", "feed_forward", "n_layers", "n_negatives", "negatives", "session_share")
"""Settings that decide how long an epoch takes, beside those of the contrastive loss."""
CONTRASTIVE = ("context", "negative_scope")
"""Those of the contrastive loss."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a trial went, or goes."""

    costs: dict[str, Any]
    """What decides it; see `costs_of`."""
    seconds: float
    """From its start, so with its share of what a cell takes once."""
    epochs: float
    """That it trained in this time."""


def seconds_left(
    about: Mapping[str, Any], cells: list[Cell], trials: list[FrozenTrial], *, workers: int, now: datetime
) -> float | None:
    """How long the workers will still be busy with a study's cells, as they are planned and as they went so far.

    It assumes that as many workers stay at work on a machine that stays as busy as it was; that a cell takes as many
    epochs as those that are complete took in the mean (max_epochs while none is; where it runs already, no fewer than
    its early stopping allows); that an epoch, with its share of a cell's start and end, takes as long as in the cells
    that are most like it; and that none fails. A cell that was stopped counts from its start.

    Args:
        about: The study's attributes: its recipe, and the settings that hold where that says nothing.
        cells: All that are planned, in the queue's order.
        trials: All that there are.
        workers: How many take cells from the queue.
        now: Local time, as Optuna's times are.

    Returns:
        Seconds; 0 where nothing is left, None where no epoch has ended yet.
    """
    tried = attempts(trials)
    status = {cell.id: cell_status(tried.get(cell.id, []), about["recipe"]["max_attempts"]) for cell in cells}
    waiting = [settings_of(about, cell) for cell in cells if status[cell.id] == "waiting"]
    running = {c.id: t for c in cells for t in tried.get(c.id, []) if t.state == TrialState.RUNNING}
    if not waiting and not running:
        return 0.0
    complete = [t for t in trials if t.state == TrialState.COMPLETE and "cell" in t.user_attrs]
    seen = [pace for t in (*complete, *running.values()) if (pace := pace_of(t, now))]
    if not seen:
        return None
    usual = statistics.mean(facts(t)["epochs"] for t in complete) if complete else float("inf")
    # When each worker is free: those at work after what is left of their cells, the others at once.
    free = [
        left_of(running[cell.id], settings_of(about, cell), usual, seen, now) for cell in cells if cell.id in running
    ]
    free += [0.0] * (workers - len(free))
    heapq.heapify(free)
    for settings in waiting:
        epochs = min(usual, largest(settings["max_epochs"]))
        heapq.heapreplace(free, free[0] + epochs * seconds_an_epoch(settings, seen))
    return max(free)


def left_of(trial: FrozenTrial, settings: Mapping[str, Any], usual: float, seen: list[Pace], now: datetime) -> float:
    """Seconds that a running trial will still take.

    Args:
        trial: With what it reported so far.
        settings: Of its cell as planned; its own, once it has settled them, go before these.
        usual: Epochs that complete cells took.
        seen: How fast trials went.
        now: Local time.
    """
    settings = settings | trial.user_attrs.get("config", {})
    an_epoch = seconds_an_epoch(settings, seen)
    reported = trial.intermediate_values
    done = len(reported)
    best = max(reported, key=lambda epoch: (reported[epoch], -epoch), default=0)
    earliest = best + max(1, largest(settings["patience"]))
    expected = min(largest(settings["max_epochs"]), max(usual, earliest, done))
    under_way = (now - trial.datetime_start).total_seconds() - an_epoch * (done - resumed_from(trial))
    return max(0.0, an_epoch * (expected - done) - min(max(0.0, under_way), an_epoch))


def settings_of(about: Mapping[str, Any], cell: Cell) -> dict[str, Any]:
    """Every setting of a planned cell; a list or a range where it is still to be proposed."""
    recipe = about["recipe"]
    return about["defaults"] | recipe["settings"] | recipe["arms"][cell.arm] | cell.params


def costs_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration decides how long an epoch takes."""
    is_contrastive = settings["alpha"] != 0
    costs = {name: settings[name] for name in COSTLY} | {"is_contrastive": is_contrastive}
    return costs | {name: settings[name] if is_contrastive else None for name in CONTRASTIVE}


def pace_of(trial: FrozenTrial, now: datetime) -> Pace | None:
    """How fast a trial went, or goes; None before its first epoch's end."""
    epochs = len(trial.intermediate_values) - resumed_from(trial)
    if epochs < 1 or "config" not in trial.user_attrs:
        return None
    seconds = ((trial.datetime_complete or now) - trial.datetime_start).total_seconds()
    # One that runs is somewhere in its next epoch: half-way, for all that is known.
    return Pace(costs_of(trial.user_attrs["config"]), seconds, epochs + 0.5 * (trial.state == TrialState.RUNNING))


def seconds_an_epoch(settings: Mapping[str, Any], seen: list[Pace]) -> float:
    """The mean over the trials seen that agree in the most of what decides it."""
    costs = costs_of(settings)
    agreement = [sum(costs[name] == pace.costs[name] for name in costs) for pace in seen]
    alike = [pace for pace, agreed in zip(seen, agreement, strict=True) if agreed == max(agreement)]
    return sum(pace.seconds for pace in alike) / sum(pace.epochs for pace in alike)


def resumed_from(trial: FrozenTrial) -> int:
    """Epochs that an attempt was given by an earlier one."""
    return trial.user_attrs.get("resumed_from", 0)


def largest(value: Any) -> float:
    """A setting's value, or the largest of its choices."""
    return max(value) if isinstance(value, list) else value


def seconds_at_work(trials: list[FrozenTrial], now: datetime) -> float:
    """How long at least one trial was running: the time between two `study run` counts for nothing.

    Nor do trials whose worker was killed: their end is known as late as the next `study run` found them.
    """
    spans = [(t.datetime_start, t.datetime_complete or now) for t in trials if t.datetime_start and not is_abandoned(t)]
    total, reached = 0.0, datetime.min
    for start, end in sorted(spans):
        total += max(0.0, (end - max(start, reached)).total_seconds())
        reached = max(reached, end)
    return total


def compared(first: Mapping[str, Any], total: float) -> str:
    """What a study takes in all, beside what was estimated after its first cells."""
    off = 100 * (total / first["seconds"] - 1)
    return f"{duration(total)}; estimated after {first['cells']} cells: {duration(first['seconds'])} ({off:+.0f}%)"


def duration(seconds: float) -> str:
    """`48 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
