"""study: the harness that runs many trainings of skiprec, keeps their record, and says what they show.

`study.launch` is what `study run` calls, for notebooks. Public names load when they are first used.
"""

import os

import skiprec  # noqa: F401  it has a word on how torch is loaded, and some modules here load torch first

# MLflow's, read when it is imported: no look-up of a telemetry host in every process. Said in the README.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A report reads dozens of small artifacts: a bar for each would hide what it prints.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# A line for each run that ends, with two requests more.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# A server that is away is said so after 4 s, not after 4 minutes of retries.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")

__all__ = ["StudyHandle", "launch"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from study import run

        return getattr(run, name)
    raise AttributeError(f"module 'study' has no attribute '{name}'")
