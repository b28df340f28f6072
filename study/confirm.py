"""Confirming runs: the best settings of every arm, trained again over fresh paired seeds, and measured on test once.

They are a study of their own, `NAME-confirm`, with the same queue, workers and records.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from skiprec.config import from_flat
from skiprec.dataset import load_dataset
from skiprec.errors import StudyError
from skiprec.files import canonical_json
from study.analysis import DoneCell, done_cells, repeats
from study.cells import Cell, cell_id, stage_of
from study.claims import claims_from
from study.run import Making, StudyHandle, carry_out
from study.space import Recipe, configuration, experiment
from study.statistics import seeds_needed
from study.storage import CONFIRM, Places, database_errors, has_study, open_study
from study.tracking import open_tracker, read_ranks

FEWEST_SEEDS = 5
"""With fewer, the seeds' own spread is hardly known, and neither is how sure the answer is."""
FIRST_SEED = 100_001
"""Far above those of a search."""


def confirm(
    where: Places,
    name: str | None,
    *,
    seeds: int | None,
    detect: float | None = None,
    workers: int = 1,
    device: str = "auto",
    show_progress: bool = True,
) -> StudyHandle:
    """Train each arm's finalist over fresh seeds, the same ones for all, and measure it on validation and test.

    Args:
        where: The study's databases.
        name: A finished study.
        seeds: How many; by default as many as `detect` needs, else FEWEST_SEEDS.
        detect: A difference of HR@10 that is to be found in 4 studies of 5, by the noise seen in the study.
        workers: Processes.
        device: "auto", "cpu", "cuda" or "cuda:N".
        show_progress: As of `launch`.

    Returns:
        The confirming study, finished.

    Raises:
        StudyError: If the study is not finished, has an arm without a result, was confirmed in another way, or no
            number of seeds is enough.
    """
    if seeds is not None and seeds < FEWEST_SEEDS:
        raise StudyError(f"--seeds is {seeds}, expected at least {FEWEST_SEEDS}: with fewer, chance decides")
    with database_errors(where):
        study = open_study(where, name)
        name, attrs = study.study_name, study.user_attrs
        if not stage_of(study).is_finished:
            raise StudyError(f"study {name} is not finished; `study run` goes on with it, then confirm it")
        chosen = finalists(done_cells(study.get_trials(deepcopy=False)), attrs["recipe"]["arms"])
        recipe = Recipe(**attrs["recipe"])
        earlier = confirmed_seeds(where, name)
        if seeds is None:
            seeds = earlier or (planned_seeds(where, study, chosen, detect) if detect else FEWEST_SEEDS)
        if earlier not in (None, seeds):
            raise StudyError(
                f"study {name} is being confirmed with {earlier} seeds, not {seeds}: test is read once, and more seeds "
                "after it was read would be chosen by it. Plan with --detect before, or make a new study"
            )
        dataset = load_dataset(Path(attrs["dataset"]))
    making = Making(
        name=f"{name}{CONFIRM}",
        recipe=confirming_recipe(recipe, name, chosen, seeds),
        dataset=dataset,
        plan=paired_plan,
        experiment=name,
        splits=("val", "test"),
        about={"confirms": name, "finalists": {arm: cell.config for arm, cell in chosen.items()}},
    )
    return carry_out(where, making, workers, device, show_progress)


def finalists(cells: Iterable[DoneCell], arms: Iterable[str]) -> dict[str, DoneCell]:
    """Each arm's best experiment by validation, as one of its cells: the best mean over the seeds that it was run with.

    Raises:
        StudyError: If an arm has no complete cell.
    """
    by_arm: dict[str, dict[str, list[DoneCell]]] = {arm: {} for arm in arms}
    for cell in cells:
        key = canonical_json(experiment(from_flat(cell.config)))
        by_arm[cell.arm].setdefault(key, []).append(cell)
    if empty := [arm for arm, groups in by_arm.items() if not groups]:
        raise StudyError(f"arm '{empty[0]}' has no complete cell, so nothing to confirm; `study status` has the errors")
    best = {
        arm: max(groups.values(), key=lambda g: (statistics.fmean(c.value for c in g), -g[0].trial))
        for arm, groups in by_arm.items()
    }
    return {arm: max(group, key=lambda c: (c.value, -c.trial)) for arm, group in best.items()}


def confirming_recipe(recipe: Recipe, name: str, chosen: Mapping[str, DoneCell], seeds: int) -> Recipe:
    """The recipe of the confirming runs: every arm fixed to its finalist's settings."""
    fixed = {
        arm: {k: v for k, v in cell.config.items() if k not in ("seed", "threads")} for arm, cell in chosen.items()
    }
    return dataclasses.replace(
        recipe,
        name=f"{name}{CONFIRM}",
        sampler="exhaustive",
        cells_per_arm=0,
        seeds=[FIRST_SEED + i for i in range(seeds)],
        # As they were declared before the study ran, written out.
        claims=[{"arm": c.arm, "than": c.than, "metric": c.metric} for c in claims_from(recipe.claims, recipe.arms)],
        settings={},
        arms=fixed,
    )


def paired_plan(recipe: Recipe, dataset_digest: str, threads: int) -> list[Cell]:
    """A cell for every seed and arm, seed by seed, so that a stop leaves whole pairs.

    Arms with the same settings share their cells: the same seed would give the same numbers.
    """
    cells: dict[str, Cell] = {}
    for seed in recipe.seeds:
        for arm in recipe.arms:
            identity = cell_id(configuration(recipe, arm, {}, seed=seed, threads=threads), dataset_digest)
            cells.setdefault(identity, Cell(identity, arm, seed, {}))
    return list(cells.values())


def confirmed_seeds(where: Places, name: str) -> int | None:
    """How many seeds a study is confirmed with, or None where its confirming was not begun."""
    if not has_study(where, f"{name}{CONFIRM}"):
        return None
    recipe = open_study(where, f"{name}{CONFIRM}").user_attrs.get("recipe")
    return len(recipe["seeds"]) if recipe else None


def planned_seeds(where: Places, study: optuna.Study, chosen: Mapping[str, DoneCell], detect: float) -> int:
    """How many paired seeds find a difference of HR@10 in 4 studies of 5, by the noise that the search showed.

    Raises:
        StudyError: If the noise is not known, or no number of seeds is enough.
    """
    noise = expected_noise(where, study, chosen)
    needed = seeds_needed(detect, **noise)
    if needed is None:
        raise StudyError(
            f"--detect {detect}: no number of seeds is enough with {noise['n_sessions']:,} sessions, whose own spread "
            "remains; expected a larger difference, or more data"
        )
    return max(FEWEST_SEEDS, needed)


def expected_noise(where: Places, study: optuna.Study, chosen: Mapping[str, DoneCell]) -> dict[str, Any]:
    """How far seeds and sessions will move a difference between two arms, from validation alone.

    Seeds: the spread of repeats, for two arms, as if pairing by seed took nothing of it away. What is left when seed
    and session are known: how often two repeats disagree about a session. Sessions: the spread of the difference
    between the finalists of the first claim, less that.

    Raises:
        StudyError: If no two cells of the study are the same experiment.
    """
    same = repeats(done_cells(study.get_trials(deepcopy=False)))
    if same is None:
        raise StudyError(
            f"study {study.study_name} has no two cells that differ by their seed alone, so how noisy seeds are is not "
            f"known; give --seeds, {FEWEST_SEEDS} or more, or two `seeds` in the recipe"
        )
    recipe = study.user_attrs["recipe"]
    claim = claims_from(recipe["claims"], recipe["arms"])[0]
    client = open_tracker(where)

    def hits(cell: DoneCell) -> np.ndarray:
        rank = read_ranks(client, cell.run_id, "val")[claim.measure].dropna()
        return (rank <= claim.k).to_numpy(dtype=float)

    disagree = np.square(hits(same.groups[0][0]) - hits(same.groups[0][1])).mean()
    difference = hits(chosen[claim.arm]) - hits(chosen[claim.than])
    return {
        "seed_sd": math.sqrt(2) * same.standard_deviation,
        "session_sd": math.sqrt(max(0.0, difference.var(ddof=1) - disagree)),
        "residual_sd": math.sqrt(disagree),  # of two arms: each has half of it
        "n_sessions": len(difference),
    }
