"""One attempt at a cell: its configuration -> training -> a COMPLETE trial, or one that failed or was given back."""

import dataclasses
import os
import shutil
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from skiprec.config import flatten, from_flat
from skiprec.dataset import Dataset, Split
from skiprec.errors import CheckpointError, OutputError, TrainingDiverged, TrainingStopped
from skiprec.evaluation import Evaluator
from skiprec.learner import Learners
from skiprec.run import RESUME, Run, read_record
from skiprec.train_config import TrainConfig
from skiprec.trainer import SELECTED_BY
from study.cells import SEED_STEP, cell_id
from study.pruning import is_behind
from study.queue import FIRST_AGAIN, RUN_KEY, Cell, enqueue, finish, is_failure
from study.sending import Home
from study.space import Recipe, configuration, experiment, suggest
from study.spool import Spool
from study.tracking import STUDY_ERRORS, MLflowTracker

RECORDED = (
    "weights",
    "chosen_epoch",
    "epochs",
    "train_seconds",
    "eval_seconds",
    "full_eval_seconds",
    "save_seconds",
)
"""What the trial keeps of its run's record."""


@dataclass(frozen=True, slots=True)
class Workplace:
    """What the attempts of one thread of a worker share."""

    study: optuna.Study
    recipe: Recipe
    dataset: Dataset
    splits: tuple[Split, ...]
    """Those that runs are measured on: "test" in confirming runs alone."""
    evaluators: Callable[[str], Mapping[Split, Evaluator]]
    """The value of only_targets -> an evaluator of each split, made once."""
    learners: Learners
    """Of the thread: one attempt after the other."""
    device: torch.device
    home: Home
    """Where runs go."""
    spool: Path
    """The folder of what they could not tell the tracker."""
    exclusively: AbstractContextManager[object]
    """Held while a cell is claimed, and while its point is chosen."""
    about: dict[str, Any]
    """What the study says of itself, read once: it lists every cell."""
    resume: Path
    """The folder of the unfinished trials' folders."""
    tags: dict[str, str]
    """Of every run: study, dataset_digest, git_commit."""
    should_stop: Callable[[], bool]


def attempt(place: Workplace, trial: optuna.Trial) -> None:
    """Train a claimed cell to its end and record it, whatever the end is.

    Raises:
        TrainingStopped: If the worker was told to stop; the cell is in the queue again.
        OutputError: If something could not be written; likewise, as no other cell could be either.
        sqlalchemy.exc.SQLAlchemyError, MlflowException: If a database failed; likewise.
    """
    tracker = None
    try:
        config = choose(place, trial)
        tracker = open_run(place, trial, config)
        value = train(place, trial, config, tracker)
    except UpdateFinishedTrialError:  # this worker was taken for dead, and the cell given to another one
        if tracker is not None:
            tracker.end("KILLED")
    except optuna.TrialPruned:
        is_done = end_trial(place, trial, TrialState.PRUNED)
        tracker.end("KILLED")
        if is_done:
            shutil.rmtree(folder_of(place, trial).parent, ignore_errors=True)
    except (TrainingStopped, OutputError, *STUDY_ERRORS) as stop:  # not the cell's fault
        give_up(place, trial, tracker, str(stop), status="KILLED", again=True, interrupted=True)
        raise
    except TrainingDiverged as error:  # it would diverge again in just the same way
        give_up(place, trial, tracker, str(error), status="FAILED", again=False, hopeless=True)
    except CheckpointError as error:  # the next attempt starts afresh
        shutil.rmtree(folder_of(place, trial), ignore_errors=True)  # no more: the cell may be another one's already
        give_up(place, trial, tracker, str(error), status="FAILED", again=True)
    except Exception as error:  # whatever it is, the study's other cells go on; shown in status and report
        about = {"traceback": traceback.format_exc()}
        give_up(place, trial, tracker, f"{type(error).__name__}: {error}", status="FAILED", again=True, **about)
    else:
        # Optuna first: it alone says what is done. A run left open between the two is closed by the next `study run`.
        is_done = end_trial(place, trial, TrialState.COMPLETE, value)
        tracker.end("FINISHED" if is_done else "KILLED")
        if is_done:
            shutil.rmtree(folder_of(place, trial).parent, ignore_errors=True)


def end_trial(place: Workplace, trial: optuna.Trial, state: TrialState, value: float | None = None) -> bool:
    """End a trial. Returns whether it was still this worker's: SQLite itself would let two processes end it."""
    with place.exclusively:
        return finish(place.study, trial._trial_id, state, value)


def folder_of(place: Workplace, trial: optuna.Trial) -> Path:
    """Where an attempt trains: a folder of its own in that of its cell."""
    return place.resume / trial.user_attrs["cell_id"] / str(trial.number)


def take_up(folder: Path) -> None:
    """Go on where an earlier attempt at the cell stopped: its folder becomes this one's.

    Moved, not shared: should its worker still be there, cut off and taken for dead, it finds its folder gone.
    """
    numbered = [path for path in folder.parent.glob("*") if path.name.isdigit()]  # no half-made one of a kill
    others = [path for path in numbered if int(path.name) < int(folder.name)]
    for earlier in sorted(others, key=lambda path: int(path.name), reverse=True):
        if not folder.exists() and (earlier / RESUME).exists():
            os.rename(earlier, folder)
        else:
            shutil.rmtree(earlier, ignore_errors=True)


def train(place: Workplace, trial: optuna.Trial, config: TrainConfig, tracker: MLflowTracker) -> float:
    """Train in the cell's folder, from its last epoch's end if it has one, and put what came of it on the trial.

    Returns:
        The chosen epoch's value of the metric that is optimised.
    """
    folder = folder_of(place, trial)
    take_up(folder)
    run = Run(
        place.dataset,
        config,
        folder,
        device=place.device,
        tracker=tracker,
        evaluators=place.evaluators(config.only_targets),
        learners=place.learners,
        show_progress=False,
        should_stop=place.should_stop,
    )
    if run.resumed_from:
        trial.set_user_attr("resumed_from", run.resumed_from)
    for past in run.history:
        trial.report(past.metrics[SELECTED_BY], past.epoch)
    for result in run.epochs():
        trial.report(result.metrics[SELECTED_BY], result.epoch)
        if is_behind(place.recipe, place.study, trial.number):
            raise optuna.TrialPruned(f"below the median of its arm at epoch {result.epoch}")
    metrics = run.finish(place.splits)
    name_run(trial, tracker)
    record = read_record(folder)
    # In one: each attribute is a transaction.
    trial.set_user_attr("result", {name: record[name] for name in RECORDED} | {"metrics": metrics})
    return metrics[SELECTED_BY]


def choose(place: Workplace, trial: optuna.Trial) -> TrainConfig:
    """The trial's configuration, put on the trial: as the queue fixed it, or as the sampler proposes it.

    A proposed point that another trial measures already becomes a new seed of it, so no two may choose at once.
    """
    attrs = trial.user_attrs
    with place.exclusively:
        params = suggest(place.recipe, attrs["arm"], trial)
        config = configuration(place.recipe, attrs["arm"], params, seed=attrs["seed"], threads=place.about["threads"])
        # A plan has settled the seeds of its cells already: in a confirming one, pairs must stay pairs.
        if place.recipe.sampler != "exhaustive" and not attrs.get("proposed"):
            used = {
                t.user_attrs["seed"]
                for t in place.study.get_trials(deepcopy=False)
                if t.user_attrs.get("cell") != attrs["cell"] and same_experiment(t, config)
            }
            while config.seed in used:
                config = dataclasses.replace(config, seed=config.seed + SEED_STEP)
        settled = {
            "cell_id": cell_id(config, place.dataset.digest),
            "seed": config.seed,
            "proposed": params,  # after its seed: with a point, a retry takes both from here
            "config": flatten(config),
        }
        for name, value in settled.items():
            if attrs.get(name) != value:  # each is a transaction, so what the queue said already is not said again
                trial.set_user_attr(name, value)
    return config


def same_experiment(trial: FrozenTrial, config: TrainConfig) -> bool:
    """Whether a trial measures what the configuration would, seeds apart."""
    theirs = trial.user_attrs.get("config")
    return theirs is not None and experiment(from_flat(theirs)) == experiment(config)


def open_run(place: Workplace, trial: optuna.Trial, config: TrainConfig) -> MLflowTracker:
    """The tracker of an attempt."""
    attrs = trial.user_attrs
    is_confirming = "test" in place.splits
    tracker = MLflowTracker(
        place.home,
        Spool(place.spool, attrs[RUN_KEY]),
        place.dataset,
        name=attrs["arm"] + (f" confirming, seed {config.seed}" if is_confirming else f" #{trial.number}"),
        tags=place.tags
        | {"cell": attrs["cell_id"], "arm": attrs["arm"], "attempt": str(attrs["attempt"]), "seed": str(config.seed)},
    )
    name_run(trial, tracker)
    return tracker


def name_run(trial: optuna.Trial, tracker: MLflowTracker) -> None:
    """Put the run's id on the trial, once it is known; where it never is in time, the run's key is there."""
    if tracker.run_id and "run_id" not in trial.user_attrs:
        trial.set_user_attr("run_id", tracker.run_id)


def give_up(
    place: Workplace,
    trial: optuna.Trial,
    tracker: MLflowTracker | None,
    error: str,
    *,
    status: str,
    again: bool,
    **marks: bool | str,
) -> None:
    """End an attempt without a value, and put its cell into the queue again where that may help.

    Args:
        place: Of the worker.
        trial: The attempt.
        tracker: Its run, if it has one.
        error: Why.
        status: Of the run.
        again: Whether another attempt may end better.
        marks: What else the trial is to say of itself.
    """
    attrs = trial.user_attrs
    with place.exclusively:  # or another process would find the cell failed, and queue it too
        with suppress(UpdateFinishedTrialError):
            for name, value in (marks | {"error": error}).items():
                trial.set_user_attr(name, value)
        if finish(place.study, trial._trial_id, TrialState.FAIL):
            same = [t for t in place.study.get_trials(deepcopy=False) if t.user_attrs.get("cell") == attrs["cell"]]
            if again and sum(map(is_failure, same)) < place.recipe.max_attempts:
                cell = Cell(
                    attrs["cell"], attrs["arm"], attrs["seed"], attrs.get("proposed", {}), attrs.get(FIRST_AGAIN, False)
                )
                enqueue(place.study, cell, attempt=attrs["attempt"] + 1)
            elif "cell_id" in attrs:  # set aside: nobody will go on with it
                shutil.rmtree(folder_of(place, trial).parent, ignore_errors=True)
    if tracker is not None:
        tracker.end(status)  # last: where the tracker is what failed, the cell is in the queue already
