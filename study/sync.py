"""Bringing the tracker up to date with a study: what `study sync` does, and `study run` when it starts."""

from pathlib import Path

import optuna

from study.sending import Refused, Unreachable
from study.storage import Places, refuse_no_server
from study.tracking import (
    close_orphans,
    home_of,
    log_dataset,
    make_schema,
    open_experiment,
    open_tracker,
    send_waiting,
)


def register(where: Places, study: optuna.Study) -> None:
    """Make a study's experiment and its own run, where the study was made --offline. By one process at a time.

    Raises:
        StudyError: If the study was made for a server, and none is named now.
    """
    about = study.user_attrs
    refuse_no_server(where, about)
    if about["parent_run"] is not None:
        return
    make_schema(where)
    client = open_tracker(where)
    experiment_id, parent = open_experiment(client, where, about["experiment"], study.study_name)
    log_dataset(client, parent, Path(about["dataset"]), about["dataset_digest"])
    study.set_user_attr("experiment_id", experiment_id)
    study.set_user_attr("parent_run", parent)


def sync(where: Places, study: optuna.Study) -> tuple[int, int]:
    """Send what waits on this machine, and close the runs that nobody is working on any more.

    Returns:
        How many records were sent, of how many runs.

    Raises:
        Unreachable: If the tracker is away; what was not sent waits on.
        Refused: If it does not take what some runs say, after all else was done.
    """
    register(where, study)
    home = home_of(where, study.user_attrs)
    try:
        sent = send_waiting(home, where.spool(study.study_name))
    except Unreachable as error:
        raise Unreachable(f"{where.tracking_uri}: {error}; what was not sent waits for `study sync`") from error
    except Refused:
        close_orphans(home.client(), study)
        raise
    close_orphans(home.client(), study)
    return sent
