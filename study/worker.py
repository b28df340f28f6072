"""A worker: takes cells from the queue of a study, one after the other, until all are done. All workers are alike.

It may have several at work side by side, each in a thread of its own: one step's operations are too small to fill a
GPU.
"""

import dataclasses
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage

from skiprec.dataset import Dataset, Split, load_dataset
from skiprec.device import own_stream, settle
from skiprec.errors import StudyError, TrainingStopped
from skiprec.evaluation import Evaluator
from skiprec.learner import Learners
from study.allowance import Allowance, allowance_of
from study.heartbeat import beating
from study.locks import claim_lock
from study.objective import Workplace, attempt, give_up
from study.queue import Queue, stage_of
from study.reaper import reap, worker_name
from study.sampler import WithinArm
from study.sending import Refused, Unreachable
from study.space import Recipe
from study.storage import Places, open_storage, open_study
from study.tracking import end_study, git_commit, home_of, send_waiting, study_errors

IDLE_SECONDS = 2.0
"""Between two looks of a worker that has nothing to do while others still have."""
BEATS_PER_GRACE = 8
"""So that a few may fail to come through."""


class StopFlag:
    """Turned on when the process that started this one is gone, or the study's time is over; asked between two steps.

    And by SIGTERM and SIGINT, from `listen` on.

    Args:
        parent: The number of that process; None for a worker that outlives the shell that it was started from.
    """

    def __init__(self, parent: int | None) -> None:
        self.is_set = False
        self.parent = parent
        self.allowance = Allowance()

    def listen(self) -> None:
        """Take signals from now on. Before, they end the process at once, which has nothing then to be given back."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.tell())

    def tell(self) -> None:
        """As a signal does."""
        self.is_set = True

    def is_told(self) -> bool:
        """Whether somebody said so."""
        return self.is_set or (self.parent is not None and os.getppid() != self.parent)

    def __call__(self) -> bool:
        return self.is_told() or self.allowance.is_over(datetime.now(UTC))


def work(where: Places, name: str, device: str, parent: int | None = None, trials_per_device: int = 1) -> None:
    """Work on a study until every cell is done, by this worker or by others.

    Args:
        where: The study's databases.
        name: The study.
        device: "auto", "cpu", "cuda" or "cuda:N".
        parent: The process without which this one stops.
        trials_per_device: That it has at work side by side.

    Raises:
        TrainingStopped: If it was told to stop; its cell is in the queue again.
        StudyError: If the dataset is not the study's, or a database fails.
    """
    should_stop = StopFlag(parent)
    # Before, graphs that threads capture share a list of generators without a lock.
    if trials_per_device > 1 and settle(device, 1).type == "cuda" and torch.__version__ < (2, 13):
        raise StudyError(f"--trials-per-device {trials_per_device} needs torch 2.13 on a GPU, here {torch.__version__}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with study_errors(where):
        study = open_study(where, name)
        place = workplace(where, study, device, should_stop)
        grace = place.about["grace_seconds"]
        beats = open_storage(where, grace)
        # A study object each, as the sampler that it holds is the trial's; and a learner, from one trial to the next.
        others = [
            dataclasses.replace(place, study=open_study(where, name), learners=Learners())
            for _ in range(trials_per_device - 1)
        ]
        if parent is None:
            print(f"joined study {name}", file=sys.stderr, flush=True)
        should_stop.listen()

        def take_cells(place: Workplace) -> None:
            with own_stream(place.device):
                until_done(place, beats, grace, should_stop)

        try:
            side_by_side([functools.partial(take_cells, p) for p in (place, *others)], should_stop.tell)
        except TrainingStopped:
            if should_stop.is_told():
                raise
        stage = stage_of(study)  # its time may be over, or everything done
        if parent is None:
            print(f"left it: {stage.ended} of {stage.planned} cells are done", file=sys.stderr, flush=True)
        if stage.is_finished and place.home.parent and parent is None:  # or who started this one says so
            end_study(place.home, place.spool, "FINISHED")
        with suppress(Unreachable, Refused):  # `study status` says what waits on
            send_waiting(place.home, place.spool)


def side_by_side(works: list[Callable[[], None]], stop: Callable[[], None]) -> None:
    """Do the first here, where signals are heard, and each other in a thread; and see all end.

    Args:
        works: Each raises TrainingStopped when it was told to stop.
        stop: Called when one raises anything else: tells the others to.

    Raises:
        Exception: What one of them raised; TrainingStopped only if none raised anything else.
    """
    errors: list[Exception] = []

    def seen(work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            errors.append(error)
            if not isinstance(error, TrainingStopped):
                stop()

    with ThreadPoolExecutor(max(1, len(works) - 1), thread_name_prefix="trials") as pool:
        others = [pool.submit(seen, work) for work in works[1:]]
        seen(works[0])
    for other in others:
        other.result()
    if errors:
        raise min(errors, key=lambda error: isinstance(error, TrainingStopped))


def until_done(place: Workplace, beats: RDBStorage, grace: float, should_stop: StopFlag) -> None:
    """Take cells, and wait for those of others, until there is nothing left to do, or to be allowed.

    Raises:
        TrainingStopped: If it was told to stop, or the time is over.
    """
    study, queue = place.study, Queue(place.study, place.exclusively)
    # Not at every cell: it is read with all that the study says of itself, which grows with the study.
    should_stop.allowance = allowance_of(study)

    def is_allowed() -> bool:
        return not should_stop.allowance.is_spent(study, datetime.now(UTC))

    while not should_stop():
        if trial := queue.claim(is_allowed):
            at_work(place, trial, beats, grace)
            if should_stop.parent is None:
                tell(study, trial)
            continue
        # The cell of a worker that dies is to be taken up; and that of one that is just giving it back.
        reap(study, beats, place.exclusively, now=datetime.now())
        should_stop.allowance = allowance_of(study)
        stage = stage_of(study)
        is_waiting = stage.waiting > 0 and is_allowed()
        if stage.running == 0 and not is_waiting:
            return
        if not is_waiting:
            time.sleep(IDLE_SECONDS)
    raise TrainingStopped(f"study {study.study_name}: told to stop between two cells")


def tell(study: optuna.Study, trial: optuna.Trial) -> None:
    """Print what became of an attempt, where nobody else shows it."""
    ended = study._storage.get_trial(trial._trial_id)
    what = f"val HR@10 {ended.value:.4f}" if ended.value is not None else ended.user_attrs.get("error", "ended early")
    attrs = ended.user_attrs
    print(f"{attrs['arm']}, seed {attrs['seed']}, attempt {attrs['attempt']}: {what}", file=sys.stderr, flush=True)


def at_work(place: Workplace, trial: optuna.Trial, beats: RDBStorage, grace: float) -> None:
    """Carry out an attempt, beating for it.

    Args:
        place: This worker's.
        trial: Claimed.
        beats: Where beats go.
        grace: How long this worker may be silent before its trial is given to another, in seconds.
    """
    place.study.sampler = WithinArm(place.recipe, trial.number)

    def on_limit(error: str) -> None:
        give_up(place, trial, None, error, status="FAILED", again=True)

    limit = place.recipe.max_seconds
    seconds = grace / BEATS_PER_GRACE
    with (
        suppress(UpdateFinishedTrialError),  # it was ended by another process
        beating(beats, trial, seconds=seconds, limit_seconds=limit, on_limit=on_limit),
    ):
        trial.set_user_attr("worker", worker_name())
        attempt(place, trial)


def workplace(where: Places, study: optuna.Study, device: str, should_stop: Callable[[], bool]) -> Workplace:
    """What a worker's attempts share.

    Raises:
        StudyError: If the dataset is not the study's.
    """
    attrs = study.user_attrs
    recipe = Recipe(**attrs["recipe"])
    dataset = load_dataset(Path(attrs["dataset"]))
    if dataset.digest != attrs["dataset_digest"]:
        raise StudyError(
            f"{dataset.path}: its digest is {dataset.digest[:8]}, expected {attrs['dataset_digest'][:8]}: "
            "it is no longer the data of this study"
        )
    chosen, splits = settle(device, attrs["threads"]), tuple(attrs["splits"])
    return Workplace(
        study=study,
        recipe=recipe,
        dataset=dataset,
        splits=splits,
        evaluators=shared_evaluators(dataset, splits, chosen),
        learners=Learners(),
        device=chosen,
        home=home_of(where, attrs),
        spool=where.spool(study.study_name),
        exclusively=claim_lock(where, study.study_name),
        about=attrs,
        resume=where.resume(study.study_name),
        tags={"study": study.study_name, "dataset_digest": dataset.digest, "git_commit": git_commit()},
        should_stop=should_stop,
    )


def shared_evaluators(
    dataset: Dataset, splits: tuple[Split, ...], device: torch.device
) -> Callable[[str], Mapping[Split, Evaluator]]:
    """What gives, for a value of only_targets, an evaluator of each split: made once, whoever asks first."""
    making = threading.Lock()

    @functools.cache
    def made(targets: str) -> Mapping[Split, Evaluator]:
        evaluators = {split: Evaluator(dataset, split, device, only_targets=targets) for split in splits}
        if device.type == "cuda":  # others' streams do not wait for this one
            torch.cuda.current_stream(device).synchronize()
        return evaluators

    def shared(targets: str) -> Mapping[Split, Evaluator]:
        with making:
            return made(targets)

    return shared
