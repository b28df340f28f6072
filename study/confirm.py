"""Confirming runs: the best settings of every arm, trained again over fresh paired seeds, and measured on test once.

They are a study of their own, `NAME-confirm`, with the same queue, workers and records.
"""

import collections
import dataclasses
import functools
import math
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from skiprec.config import from_flat
from skiprec.dataset import load_dataset
from skiprec.errors import StudyError
from skiprec.files import canonical_json
from study.analysis import DoneCell, done_cells, repeats
from study.cells import cell_id
from study.claims import Claim, claims_from
from study.queue import Cell, stage_of
from study.run import Making, StudyHandle, carry_out
from study.sending import find_run
from study.space import Recipe, configuration, experiment
from study.statistics import LEVEL, seeds_needed
from study.storage import CONFIRM, Places, has_study, open_study
from study.tracking import open_tracker, read_ranks, study_errors

FEWEST_SEEDS = 5
"""With fewer, the seeds' own spread is hardly known, and neither is how sure the answer is."""
FIRST_SEED = 100_001
"""Above those of most searches; see `first_seed`."""


def confirm(
    where: Places,
    name: str | None,
    *,
    seeds: int | None,
    detect: float | None = None,
    workers: int = 1,
    trials_per_device: int = 1,
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
        trials_per_device: As of `launch`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        show_progress: As of `launch`.

    Returns:
        The confirming study, finished.

    Raises:
        StudyError: If the study is not finished, has an arm without a result, was confirmed in another way, or no
            number of seeds is enough; or if `seeds` or `detect` cannot be.
    """
    check_seeds(seeds)
    if detect is not None and not 0 < detect < 1:
        raise StudyError(f"--detect is {detect:g}, expected a difference of HR@10 such as 0.01, which is one point")
    if seeds is not None and detect is not None:
        raise StudyError(f"--seeds is {seeds} and --detect {detect:g}, expected one of them: each says how many seeds")
    with study_errors(where):
        study = open_study(where, name)
        name, attrs = study.study_name, study.user_attrs
        if not stage_of(study).is_finished:
            raise StudyError(f"study {name} is not finished; `study run` goes on with it, then confirm it")
        cells = done_cells(study.get_trials(deepcopy=False))
        chosen = finalists(cells, attrs["recipe"]["arms"])
        recipe = Recipe(**attrs["recipe"])
        earlier = confirmed_seeds(where, name)
        if seeds is None:
            seeds = planned_seeds(where, study, chosen, detect) if detect else earlier or FEWEST_SEEDS
        if earlier not in (None, seeds):
            raise StudyError(
                f"study {name} is being confirmed with {earlier} seeds, not {seeds}: test is read once, and more seeds "
                "after it was read would be chosen by it. Plan with --detect before, or make a new study"
            )
        if detect and not earlier and show_progress:
            print(f"{seeds} paired seeds, by the noise seen, to find a difference of {detect:g}", file=sys.stderr)
        dataset = load_dataset(Path(attrs["dataset"]))
    making = Making(
        name=f"{name}{CONFIRM}",
        recipe=confirming_recipe(recipe, name, chosen, fresh_seeds(cells, seeds)),
        dataset=dataset,
        plan=paired_plan,
        experiment=name,
        grace_seconds=attrs["grace_seconds"],
        splits=("val", "test"),
        about={"confirms": name, "finalists": {arm: cell.config for arm, cell in chosen.items()}},
    )
    return carry_out(where, making, workers, device, show_progress, trials_per_device=trials_per_device)


def check_seeds(seeds: int | None) -> None:
    """Refuse a number of seeds by which nothing can be said.

    Raises:
        StudyError: With the fewest.
    """
    if seeds is not None and seeds < FEWEST_SEEDS:
        raise StudyError(f"--seeds is {seeds}, expected at least {FEWEST_SEEDS}: with fewer, chance decides")


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


def fresh_seeds(cells: Iterable[DoneCell], n: int) -> list[int]:
    """Seeds that no cell of the search had."""
    first = max(FIRST_SEED, 1 + max(cell.seed for cell in cells))
    return [first + i for i in range(n)]


def confirming_recipe(recipe: Recipe, name: str, chosen: Mapping[str, DoneCell], seeds: list[int]) -> Recipe:
    """The recipe of the confirming runs: every arm fixed to its finalist's settings."""
    fixed = {
        arm: {k: v for k, v in cell.config.items() if k not in ("seed", "threads")} for arm, cell in chosen.items()
    }
    return dataclasses.replace(
        recipe,
        name=f"{name}{CONFIRM}",
        sampler="exhaustive",
        pruner="none",
        cells_per_arm=0,
        repeats=0,
        seeds=seeds,
        # As they were declared before the study ran, written out.
        claims=[claim.table for claim in claims_from(recipe.claims, recipe.arms)],
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
    """How many paired seeds find a difference in 4 studies of 5, for any claim, by the noise that the search showed.

    Each claim is asked as strictly as Holm's correction asks the clearest one of the family.

    Raises:
        StudyError: If nothing is claimed, the noise is not known, or no number of seeds is enough.
    """
    recipe = study.user_attrs["recipe"]
    claims = claims_from(recipe["claims"], recipe["arms"])
    same = repeats(done_cells(study.get_trials(deepcopy=False)))
    if not claims:
        raise StudyError(
            f"--detect {detect}: study {study.study_name} has one arm, so there is no difference to detect"
        )
    if same is None:
        raise StudyError(
            f"study {study.study_name} has no two cells that differ by their seed alone, so how noisy seeds are is not "
            f"known; give --seeds, {FEWEST_SEEDS} or more, or `repeats = 1` in the recipe"
        )
    client, experiment, needed = open_tracker(where), study.user_attrs["experiment_id"], FEWEST_SEEDS
    read = functools.cache(lambda run_id, key: read_ranks(client, run_id or find_run(client, experiment, key), "val"))
    for claim in claims:

        def hits(cell: DoneCell, claim: Claim = claim) -> np.ndarray:
            return (read(cell.run_id, cell.run_key)[claim.measure].dropna() <= claim.k).to_numpy(dtype=float)

        groups = [[hits(cell) for cell in group] for group in same.groups]
        terms = collections.Counter()  # an arm may stand in both differences of a claim
        for sign, arm in zip((1, -1, -1, 1), claim.arms, strict=False):
            terms[arm] += sign
        noise = expected_noise(groups, [(factor, hits(chosen[arm])) for arm, factor in terms.items()])
        seeds = seeds_needed(detect, **noise, level=LEVEL / len(claims))
        if seeds is None:
            raise StudyError(
                f"--detect {detect}: no number of seeds is enough for {claim.named()}, with {noise['n_sessions']:,} "
                "sessions, whose own spread remains; expected a larger difference, or more data"
            )
        needed = max(needed, seeds)
    return needed


def expected_noise(
    repeated: Sequence[Sequence[np.ndarray]], compared: Sequence[tuple[int, np.ndarray]]
) -> dict[str, Any]:
    """How far seeds and sessions will move a difference, by one run of each arm and by repeats of any.

    What is left when seed and session are known: how often two repeats disagree about a session. Seeds: the spread of
    the repeats' means, less what of that such disagreement explains; for two arms, as if pairing by seed took nothing
    of it away. Sessions: the spread of the difference, less what is left.

    Args:
        repeated: Groups of runs that differ by their seed alone, each run its validation hits, 0 or 1, by session.
        compared: What is added up to the difference: a factor for each arm, and its hits.

    Returns:
        seed_sd, session_sd, residual_sd and n_sessions, as `study.statistics.power` takes them.
    """
    n_sessions, squares = len(compared[0][1]), sum(factor**2 for factor, _ in compared)
    by_seed, rest, freedom = 0.0, 0.0, 0
    for runs in map(np.stack, repeated):
        means = runs.mean(1)
        by_seed += np.square(means - means.mean()).sum()
        # Less the runs' own means: that part is the seeds'.
        rest += np.square(runs - runs.mean(0) - (means - means.mean())[:, None]).sum() / (runs.shape[1] - 1)
        freedom += len(runs) - 1
    residual = squares * rest / freedom
    seed = squares * by_seed / freedom - residual / n_sessions
    session = sum(factor * hits for factor, hits in compared).var(ddof=1) - residual
    return {
        "seed_sd": math.sqrt(max(0.0, seed)),
        "session_sd": math.sqrt(max(0.0, session)),
        "residual_sd": math.sqrt(residual),
        "n_sessions": n_sessions,
    }
