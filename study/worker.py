"""A worker: takes cells from the queue of a study, one after the other, until none waits. All workers are alike."""

import functools
import os
import signal
from contextlib import suppress
from pathlib import Path

import optuna

from skiprec.dataset import load_dataset
from skiprec.device import settle
from skiprec.errors import StudyError, TrainingStopped
from skiprec.evaluation import Evaluator
from study.cells import Queue
from study.objective import Workplace, attempt
from study.sampler import WithinArm
from study.sending import Unreachable
from study.space import Recipe
from study.storage import Places, claim_lock, database_errors, open_study
from study.tracking import git_commit, home_of, send_waiting


class StopFlag:
    """Turned on by SIGTERM, by SIGINT, or when the process that started this one is gone; asked between two steps."""

    def __init__(self) -> None:
        self.is_set = False
        self.parent = os.getppid()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._set)

    def _set(self, number: int, frame: object) -> None:
        self.is_set = True

    def __call__(self) -> bool:
        return self.is_set or os.getppid() != self.parent


def work(where: Places, name: str, device: str) -> None:
    """Work on a study until no cell is waiting.

    Raises:
        TrainingStopped: If it was told to stop; its cell is in the queue again.
        StudyError: If the dataset is not the study's, or a database fails.
    """
    should_stop = StopFlag()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with database_errors(where):
        study = open_study(where, name)
        attrs = study.user_attrs
        recipe = Recipe(**attrs["recipe"])
        dataset = load_dataset(Path(attrs["dataset"]))
        if dataset.digest != attrs["dataset_digest"]:
            raise StudyError(
                f"{dataset.path}: its digest is {dataset.digest[:8]}, expected {attrs['dataset_digest'][:8]}: "
                "it is no longer the data of this study"
            )
        chosen, splits = settle(device, attrs["threads"]), tuple(attrs["splits"])
        place = Workplace(
            study=study,
            recipe=recipe,
            dataset=dataset,
            splits=splits,
            evaluators=functools.cache(
                lambda targets: {split: Evaluator(dataset, split, chosen, only_targets=targets) for split in splits}
            ),
            device=chosen,
            home=home_of(where, attrs),
            spool=where.spool(name),
            exclusively=claim_lock(where, name),
            about=attrs,
            resume=where.resume(name),
            tags={"study": name, "dataset_digest": dataset.digest, "git_commit": git_commit()},
            should_stop=should_stop,
        )
        queue = Queue(study, place.exclusively)
        while not should_stop():
            trial = queue.claim()
            if trial is None:
                with suppress(Unreachable):  # `study status` says what waits on
                    send_waiting(place.home, place.spool)
                return
            study.sampler = WithinArm(recipe, trial.number)
            attempt(place, trial)
        raise TrainingStopped(f"study {name}: told to stop between two cells")
