"""study: the harness that runs many trainings of skiprec, keeps their record, and says what they show.

`study.launch` is what `study run` calls, for notebooks. Public names load when they are first used.
"""

__all__ = ["StudyHandle", "launch"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from study import run

        return getattr(run, name)
    raise AttributeError(f"module 'study' has no attribute '{name}'")
