"""Making a study or going on with one, starting its workers, and what it has come to. What `study run` calls."""

import dataclasses
import functools
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import torch

from skiprec.baselines import baselines, evaluate_baselines
from skiprec.config import flatten
from skiprec.dataset import Dataset, Split, load_dataset
from skiprec.describe import as_json, counts
from skiprec.device import settle
from skiprec.errors import OutputError, StudyError
from skiprec.evaluation import Evaluator
from skiprec.run import environment
from skiprec.train_config import TrainConfig
from study.allowance import allow, allowance_of
from study.cells import plan
from study.crew import Crew
from study.locks import claim_lock, run_lock
from study.locks import make_schema as make_study_schema
from study.queue import FIRST_AGAIN, Cell, Progress, planned_cells, refill, stage_of
from study.reaper import end_dead, worker_name
from study.sending import Refused, Unreachable
from study.space import Recipe, arm_settings, check_equal_chances, differences, load_recipe
from study.stopping import pause, remembered
from study.storage import CONFIRM, Places, open_storage, open_study, places, refuse_other_version
from study.sync import register, sync
from study.tracking import STUDY_ERRORS, end_study, git_commit, home_of, open_tracker, reopen_run, study_errors
from study.tracking import make_schema as make_tracking_schema
from study.watch import watch

if TYPE_CHECKING:
    import pandas as pd

CONTEXTS_KEPT = 30
"""Context types that a study keeps the figures of."""


@dataclass(frozen=True, kw_only=True)
class Making:
    """What a study is made from."""

    name: str
    recipe: Recipe
    dataset: Dataset
    plan: Callable[[Recipe, str, int], list[Cell]] = plan
    """Recipe, dataset digest, threads -> every cell."""
    experiment: str = ""
    """In MLflow, if it is not the study's own."""
    grace_seconds: float = 120.0
    """How long a worker may be silent before its cell is given to another one."""
    threads: int | None = None
    """Of each worker; the machine's cores divided among them if None."""
    splits: tuple[Split, ...] = ("val",)
    """Those that its runs are measured on."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What else the study is to say of itself."""


@dataclass(frozen=True)
class StudyHandle:
    """A study, for notebooks."""

    name: str
    where: Places

    @property
    def study(self) -> optuna.Study:
        """Optuna's own object."""
        with study_errors(self.where):
            return open_study(self.where, self.name)

    def progress(self) -> Progress:
        """Where its cells stand."""
        study = self.study
        with study_errors(self.where):
            return stage_of(study)

    def trials(self) -> "pd.DataFrame":
        """One row a trial."""
        from study.analysis import trials_table  # pandas' tables are not needed to run

        return trials_table(self.study.get_trials(deepcopy=False))

    def report(self, out: str | Path) -> list[Path]:
        """Write the report into a new folder."""
        from study.report import report_study  # nor is matplotlib

        return report_study(self.where, self.name, Path(out))


def launch(
    recipe: str | Recipe,
    data: str | Path,
    *,
    workers: int = 1,
    trials_per_device: int = 1,
    threads: int | None = None,
    name: str | None = None,
    mlruns: str | Path = "mlruns",
    storage: str | None = None,
    tracking_uri: str | None = None,
    checkpoint_dir: str | Path | None = None,
    grace_seconds: float = 120.0,
    max_cells: int | None = None,
    budget_seconds: float | None = None,
    device: str = "auto",
    offline: bool = False,
    show_progress: bool = True,
) -> StudyHandle:
    """Create a study or go on with it, and work on it until every cell is done.

    Args:
        recipe: The name of a shipped one, a TOML file, or a Recipe.
        data: A dataset folder.
        workers: Processes here; 0 makes the study for workers elsewhere, and returns.
        trials_per_device: Trials that each of them has at work side by side; for a GPU that one alone does not fill.
        threads: Of each trial, everywhere; by default this machine's cores are divided among them. Results depend
            on it, so it is kept from when the study is made.
        name: Of the study; by default the recipe's and the first 8 digits of the dataset's digest.
        mlruns: The folder of the default databases, artifacts and resume points.
        storage: Optuna's database, as SQLAlchemy writes it.
        tracking_uri: MLflow's database or server.
        checkpoint_dir: Of the resume points, if not in mlruns: a folder that all machines share.
        grace_seconds: How long a worker may be silent before its cell is given to another one.
        max_cells: That may be begun before this returns; all if None.
        budget_seconds: After which cells are given back, and this returns.
        device: "auto", "cpu", "cuda" or "cuda:N".
        offline: Whether to go on without the tracker, if it is away: what it is to be told waits for `study sync`.
        show_progress: A tqdm bar over cells; where the output is no terminal, a line when more of them are done.

    Returns:
        The study, finished.

    Raises:
        ConfigError: If the recipe is wrong.
        StudyError: If the name belongs to another recipe or other data, someone else runs it, or a worker failed.
        KeyboardInterrupt: After Ctrl-C, when every worker has given its cell back.
    """
    if isinstance(recipe, str):
        recipe = load_recipe(recipe)
    check_equal_chances(recipe)
    if workers < 0:
        raise StudyError(f"--workers is {workers}, expected at least 0")
    if threads is not None and threads < 1:
        raise StudyError(f"--threads is {threads}, expected at least 1")
    if trials_per_device < 1:
        raise StudyError(f"--trials-per-device is {trials_per_device}, expected at least 1")
    dataset = load_dataset(data)
    if grace_seconds <= 0:
        raise StudyError(f"--grace-seconds is {grace_seconds}, expected above 0")
    name = name or f"{recipe.name}-{dataset.digest[:8]}"
    check_name(name)
    making = Making(
        name=name,
        recipe=recipe,
        dataset=dataset,
        grace_seconds=grace_seconds,
        threads=threads,
    )
    where = places(Path(mlruns), storage, tracking_uri, Path(checkpoint_dir) if checkpoint_dir else None)
    limits = {"max_cells": max_cells, "budget_seconds": budget_seconds, "offline": offline}
    try:
        return carry_out(where, making, workers, device, show_progress, trials_per_device=trials_per_device, **limits)
    except Unreachable as error:
        raise Unreachable(f"{error}; or `study run --offline` goes on without it") from error


def check_name(name: str) -> None:
    """Refuse a study's name that cannot be a folder's, or is that of another study's confirming runs.

    Raises:
        StudyError: With what is expected.
    """
    if name != Path(name).name or "\\" in name or name.startswith("."):
        raise StudyError(f"the study's name is '{name}', expected one that can name a folder; give another --name")
    if name.endswith(CONFIRM):
        raise StudyError(f"the study's name is '{name}': {CONFIRM} is for confirming runs; give another --name")


def carry_out(
    where: Places,
    making: Making,
    workers: int,
    device: str,
    show_progress: bool,
    *,
    trials_per_device: int = 1,
    max_cells: int | None = None,
    budget_seconds: float | None = None,
    offline: bool = False,
) -> StudyHandle:
    """Make a study, or go on with it, until every cell is done or the allowance is spent.

    Raises:
        StudyError: If the name belongs to another recipe or other data, someone else runs it, or a worker failed.
        KeyboardInterrupt: After Ctrl-C, when every worker has given its cell back.
    """
    at_once = workers * trials_per_device
    with remembered(), study_errors(where), run_lock(where, making.name):
        study = create(where, making, at_once, device, offline)
        pause(0)
        try:
            end_dead(where, study)
            if not offline:
                try:
                    sync(where, study)
                except Refused as error:  # what a run has to say must not keep the others from training
                    print(f"warning: {error}", file=sys.stderr)
                reopen_run(open_tracker(where), study.user_attrs["parent_run"])
            with claim_lock(where, making.name):
                refill(study, planned_cells(study), making.recipe.max_attempts, check=functools.partial(pause, 0))
            allow(study, max_cells=max_cells, budget_seconds=budget_seconds, now=datetime.now(UTC))
            if workers:
                study.set_user_attr("workers", at_once)
            if workers and not stage_of(study).is_finished:
                refuse_full_disk(where, making.dataset, study, at_once)
                supervise(where, study, workers, trials_per_device, device, show_progress)
        finally:
            end_dead(where, study)
            if workers or stage_of(study).is_finished:  # or it goes on elsewhere, and who finishes it says so
                home = home_of(where, study.user_attrs, offline=offline)
                end_study(home, where.spool(making.name), "FINISHED" if stage_of(study).is_finished else "KILLED")
            if not offline:
                with suppress(StudyError, *STUDY_ERRORS):  # `study status` says what waits
                    sync(where, study)
    return StudyHandle(making.name, where)


def create(where: Places, making: Making, at_once: int, device: str, offline: bool = False) -> optuna.Study:
    """The study of that name, made whole if there is none, or left by a stop before it was whole.

    Raises:
        StudyError: If there is one with another recipe or other data, with what differs.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    make_study_schema(where)
    if not offline:
        make_tracking_schema(where)
    name, dataset = making.name, making.dataset
    study = optuna.create_study(study_name=name, storage=open_storage(where), direction="maximize", load_if_exists=True)
    attrs = study.user_attrs
    refuse_other_version(name, attrs)
    told = json.loads(json.dumps(dataclasses.asdict(making.recipe)))
    if "cells" in attrs:  # which is written last
        differs = differences(attrs["recipe"], told)
        if attrs["dataset_digest"] != dataset.digest:
            differs.append(f"the dataset was {attrs['dataset_digest'][:8]}, now {dataset.digest[:8]}")
        if differs:
            raise StudyError(f"study {name} was made differently: {'; '.join(differs)}. Give this one another --name")
        study.set_user_attr("dataset", str(dataset.path.resolve()))  # the same data may have moved
    else:
        study.set_user_attr("tracking_uri", where.tracking_uri)
        introduce(study, making, at_once, device)
    if not offline:
        register(where, study)
    return study


def introduce(study: optuna.Study, making: Making, at_once: int, device: str) -> None:
    """Have a new study say what it is: its recipe, data, baselines, versions and cells."""
    name, dataset = making.name, making.dataset
    threads = making.threads or max(1, (os.cpu_count() or 1) // max(1, at_once))
    chosen = settle(device, threads)
    pause(0)
    with remembered(raises=True):  # takes minutes, and asks no database
        baselines_found, described = baseline_metrics(dataset, making, chosen), description(dataset)
    about = dict(making.about) | {
        "recipe": dataclasses.asdict(making.recipe),
        "defaults": flatten(TrainConfig()),
        "dataset": str(dataset.path.resolve()),
        "dataset_digest": dataset.digest,
        "dataset_counts": dataset.manifest.counts,
        "dropped": dataset.manifest.dropped,
        "description": described,
        "threads": threads,
        "experiment": making.experiment or name,
        "experiment_id": None,  # as its own run: the tracker's to give
        "parent_run": None,
        "splits": list(making.splits),
        "grace_seconds": making.grace_seconds,
        "baselines": baselines_found,
        "versions": environment(chosen),
        "git_commit": git_commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "cells": {
            cell.id: {"arm": cell.arm, "seed": cell.seed, "params": cell.params, FIRST_AGAIN: cell.first_again}
            for cell in making.plan(making.recipe, dataset.digest, threads)
        },
    }
    for key, value in about.items():
        study.set_user_attr(key, value)


def description(dataset: Dataset) -> dict[str, Any]:
    """What `skiprec describe` counts, of the contexts only the most frequent: a study keeps it with itself."""
    about = json.loads(as_json(counts(dataset)))
    about["contexts"] = dict(list(about["contexts"].items())[:CONTEXTS_KEPT])
    about["skipped_by_context"] = {name: about["skipped_by_context"][name] for name in about["contexts"]}
    return about


def baseline_metrics(dataset: Dataset, making: Making, device: torch.device) -> dict[str, dict[str, float]]:
    """Every baseline's metrics on the study's splits; of heard targets alone where every arm is asked about those."""
    arms = making.recipe.arms
    targets = {arm_settings(making.recipe, arm).get("only_targets", "all") for arm in arms}
    only = "heard" if targets == {"heard"} else "all"
    scorers = baselines(dataset)
    metrics: dict[str, dict[str, float]] = {}
    for split in making.splits:
        evaluator = Evaluator(dataset, split, device, only_targets=only)
        for name, values in evaluate_baselines(scorers, evaluator).items():
            metrics[name] = metrics.get(name, {}) | values
    return metrics


def refuse_full_disk(where: Places, dataset: Dataset, study: optuna.Study, at_once: int) -> None:
    """Refuse a study whose checkpoints would not fit, before it starts.

    Raises:
        OutputError: With what is needed and what is free.
    """
    dim = max(cell_dim(study, cell) for cell in planned_cells(study))
    weights = 4 * dim * (dataset.n_items + 2 + 10 * dim)  # float32; the blocks hold some 9 dim^2
    stage = stage_of(study)
    # A checkpoint a cell, and for each at work its best, weights and two moments; with room for the databases.
    needed = (stage.planned - stage.ended + 5 * at_once) * weights + 20_000_000
    # With everything elsewhere that folder is not made; that of the resume points is, by the lock.
    place = where.mlruns if where.mlruns.exists() else where.resume(study.study_name)
    free = shutil.disk_usage(place).free
    if needed > free:
        raise OutputError(
            f"{place}: the study's checkpoints need about {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free; "
            "free space, or give another --mlruns"
        )


def cell_dim(study: optuna.Study, cell: Cell) -> int:
    """The width of a cell's model; the largest that may be proposed where it is not settled."""
    recipe = study.user_attrs["recipe"]
    value = cell.params.get("dim", recipe["arms"][cell.arm].get("dim", recipe["settings"].get("dim", 128)))
    return int(value["high"]) if isinstance(value, dict) else max(value) if isinstance(value, list) else value


def supervise(
    where: Places, study: optuna.Study, workers: int, trials_per_device: int, device: str, show_progress: bool
) -> None:
    """Start the workers, show how far they are, replace those that die, and see them end.

    Raises:
        StudyError: If a worker ended with an error, or left cells undone.
        KeyboardInterrupt: After Ctrl-C or SIGTERM, when every worker has given its cell back.
    """

    def on_death(process: int) -> bool:
        end_dead(where, study)
        name = worker_name(process)
        return any(t.user_attrs.get("worker") == name for t in study.get_trials(deepcopy=False))

    crew = Crew(where, study.study_name, device, workers, on_death, trials_per_device)
    try:
        watch(study, crew, show_progress)
    except KeyboardInterrupt:
        print("stopping: workers give their cells back at the last epoch's end", file=sys.stderr)
        raise
    finally:
        crew.stop()
    stage = stage_of(study)
    if crew.failed or not (stage.is_finished or allowance_of(study).is_spent(study, datetime.now(UTC))):
        raise StudyError(
            f"study {study.study_name}: {crew.failed} of {workers} workers ended with an error (shown above), "
            f"{stage.planned - stage.ended} of {stage.planned} cells are not done; "
            "run the same command again to go on"
        )
