"""What a recipe would do to a dataset, and how long that may take, before anything is spent."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from skiprec.config import flatten
from skiprec.dataset import Dataset
from skiprec.device import settle
from skiprec.errors import StudyError
from skiprec.train_config import TrainConfig
from skiprec.trainer import Trainer
from study.cells import plan
from study.claims import Claim
from study.confirm import FEWEST_SEEDS
from study.estimate import costs_of, duration, largest, settings_of
from study.queue import Cell
from study.space import Recipe, arm_settings, budget, claims_of, configuration, corners

BATCHES_TIMED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmPlan:
    """What an arm would take."""

    arm: str
    cells: int
    search_seconds: float
    """At most, with one worker: early stopping usually ends a cell sooner."""
    confirm_seconds: float
    """Of its confirming runs, likewise."""


def plan_study(recipe: Recipe, dataset: Dataset, *, workers: int, device: str, show_progress: bool = True) -> str:
    """Cells, runs, claims and hours of a study, as text. Nothing is written.

    Args:
        recipe: What would be tried.
        dataset: On what.
        workers: Processes that would share the cells.
        device: As of `study run`.
        show_progress: A tqdm bar over the kinds of cells that are timed, on a terminal.

    Raises:
        StudyError: If there would be no worker.
    """
    if workers < 1:
        raise StudyError(f"--workers is {workers}, expected at least 1: those that would share the cells, wherever")
    threads = max(1, (os.cpu_count() or 1) // workers)
    cells = plan(recipe, dataset.digest, threads)
    timed = timer(recipe, dataset, threads, settle(device, threads))
    arms = list(tqdm((arm_plan(recipe, arm, cells, timed) for arm in recipe.arms), total=len(recipe.arms), unit=" arms",
                     desc="timing", disable=None if show_progress else True))  # fmt: skip
    return render(recipe, dataset, arms, len(cells), workers)


def arm_plan(
    recipe: Recipe, arm: str, cells: Iterable[Cell], timed: Callable[[str, Mapping[str, Any]], float]
) -> ArmPlan:
    """What an arm would take.

    Args:
        recipe: The recipe.
        arm: One of its arms.
        cells: All that are planned.
        timed: Arm and settings -> seconds an epoch.
    """
    about = {"recipe": dataclasses.asdict(recipe), "defaults": flatten(TrainConfig())}
    own = [settings_of(about, cell) for cell in cells if cell.arm == arm]
    seconds = [timed(arm, settings) * largest(settings["max_epochs"]) for settings in own]
    return ArmPlan(arm=arm, cells=len(own), search_seconds=sum(seconds), confirm_seconds=FEWEST_SEEDS * max(seconds))


def timer(
    recipe: Recipe, dataset: Dataset, threads: int, device: torch.device
) -> Callable[[str, Mapping[str, Any]], float]:
    """What says how long an epoch takes: by training a few batches, once for each kind of cell.

    Where settings are still to be proposed, the first corner of their ranges stands for them.
    """
    known: dict[str, float] = {}

    def timed(arm: str, settings: Mapping[str, Any]) -> float:
        key = repr(costs_of(settings))
        if key not in known:
            point = next(corners({k: v for k, v in settings.items() if k in arm_settings(recipe, arm)}))
            known[key] = seconds_an_epoch(configuration(recipe, arm, point, seed=1, threads=threads), dataset, device)
        return known[key]

    return timed


def seconds_an_epoch(config: TrainConfig, dataset: Dataset, device: torch.device) -> float:
    """Seconds of an epoch and its validation, by a few batches of the sessions with the whole catalogue."""
    n = min(dataset.n_sessions, BATCHES_TIMED * config.batch_size)
    brief = dataclasses.replace(config, max_epochs=2, patience=1, session_share=1.0)
    *_, last = Trainer(
        dataset.some(n), brief, device=device, show_progress=False
    ).epochs()  # the first one compiles its loops
    return (last.train_seconds * config.session_share + last.eval_seconds) * dataset.n_sessions / n


def render(recipe: Recipe, dataset: Dataset, arms: list[ArmPlan], n_cells: int, workers: int) -> str:
    """The plan as text."""
    width = max(len(arm.arm) for arm in arms)
    lines = [f"{recipe.name}: {recipe.asks or recipe.description}"]
    lines.append(
        f"data: {dataset.path.name} ({dataset.digest[:8]}), {dataset.n_sessions:,} sessions, {dataset.n_items:,} items"
    )
    lines.append("")
    for arm in arms:
        lines.append(
            f"  {arm.arm:<{width}}  {arm.cells:>4} cells, about {duration(arm.search_seconds / workers)}; "
            f"confirming: {FEWEST_SEEDS} runs, about {duration(arm.confirm_seconds / workers)}"
        )
    search = sum(arm.search_seconds for arm in arms) / workers
    confirming = sum(arm.confirm_seconds for arm in arms) / workers
    runs = n_cells + FEWEST_SEEDS * len(arms)
    lines.append("")
    lines.append(
        f"{n_cells} cells and {FEWEST_SEEDS * len(arms)} confirming runs, {runs} trainings: about "
        f"{duration(search + confirming)} with {workers} at work ({duration(search)} and {duration(confirming)}), "
        "if none stops early"
    )
    equal = len({budget(recipe, arm) for arm in recipe.arms}) == 1
    lines.append(
        "every arm may spend the same" if equal else "arms may spend UNEQUAL amounts, which favours those with more"
    )
    lines.append("")
    lines.append(f"claims, tested by the confirming runs (worthwhile from {100 * recipe.worthwhile:g} points):")
    lines += [f"  {as_claimed(claim)}" for claim in claims_of(recipe)]
    return "\n".join(lines)


def as_claimed(claim: Claim) -> str:
    """`a is above b in test/hr_at_10`."""
    text = f"{claim.arm} is above {claim.than} in {claim.metric}"
    return f"{text}, by more than {claim.beyond[0]} is above {claim.beyond[1]}" if claim.beyond else text
