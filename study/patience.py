"""Optuna's storage on a server that may be restarted, or out of reach for a while, in the middle of a study."""

import functools
import time
from collections.abc import Callable
from typing import Any

import sqlalchemy.exc
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from study.stopping import pause

PATIENCE_SECONDS = 600.0
"""How long an outage may take before it is an error."""
LONGEST_PAUSE_SECONDS = 5.0


def is_outage(error: Exception) -> bool:
    """Whether an error may go away by itself: no connection, a server that starts or stops, a lock that was not got."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    # PendingRollbackError: where reading trials fails, Optuna tries another way in the same, broken, transaction.
    kinds = sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError | sqlalchemy.exc.PendingRollbackError
    return isinstance(cause, kinds) or (isinstance(cause, sqlalchemy.exc.DBAPIError) and cause.connection_invalidated)


def patiently(
    call: Callable[[], Any],
    *,
    again: Callable[[], Any] | None = None,
    patience: float = PATIENCE_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = pause,
) -> Any:
    """Call until there is no outage.

    Args:
        call: What is tried.
        again: What is tried after a failure, whose effect may or may not have been kept; the same if None.
        patience: Seconds, after which the error is raised.
        clock: Monotonic seconds.
        sleep: Waits.
    """
    until, pause = clock() + patience, 0.1
    while True:
        try:
            return call()
        except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
            if not is_outage(error) or clock() > until:
                raise
        sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        call = again or call


class PatientStorage(RDBStorage):
    """Waits while the server does not answer.

    A statement whose connection breaks may have been committed or not. To set something again changes nothing; a trial
    that is made again is one too many, which `study.queue.Queue` removes.
    """

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Any = None) -> bool:
        """As Optuna's; a trial that turns out to have ended so already, before the connection broke, is no error."""
        first = super().set_trial_state_values

        def again() -> bool:
            try:
                return first(trial_id, state, values)
            except UpdateFinishedTrialError:
                if self.get_trial(trial_id).state == state:
                    return True
                raise

        return patiently(
            lambda: super(PatientStorage, self).set_trial_state_values(trial_id, state, values), again=again
        )


PATIENT = (
    "_create_new_trial",
    "_get_stale_trial_ids",
    "_get_trials",
    "_set_trial_param",
    "create_new_study",
    "get_all_studies",
    "get_study_directions",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_system_attrs",
    "get_study_user_attrs",
    "get_trial",
    "record_heartbeat",
    "set_study_system_attr",
    "set_study_user_attr",
    "set_trial_intermediate_value",
    "set_trial_system_attr",
    "set_trial_user_attr",
)
"""What else the study and Optuna's cache ask of the storage."""


def made_patient(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, called until there is no outage."""

    @functools.wraps(method)
    def call(self: PatientStorage, *args: Any, **kwargs: Any) -> Any:
        return patiently(lambda: method(self, *args, **kwargs))

    return call


for name in PATIENT:
    setattr(PatientStorage, name, made_patient(getattr(RDBStorage, name)))
