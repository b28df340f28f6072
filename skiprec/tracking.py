"""The seam to experiment trackers: what the trainer says of a run, and to whom. Trackers themselves live elsewhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable


@runtime_checkable
class Tracker(Protocol):
    """Whoever keeps the record of one run."""

    def log_params(self, params: Mapping[str, bool | int | float | str]) -> None:
        """The run's flat configuration, once, before the first epoch."""

    def log_metrics(self, metrics: Mapping[str, float], *, epoch: int) -> None:
        """All metrics of one epoch (from 1), in one call."""

    def log_artifact(self, path: Path) -> None:
        """A file of the run, to be kept with it."""


class NullTracker:
    """Keeps nothing: for runs whose folder is record enough."""

    def log_params(self, params: Mapping[str, bool | int | float | str]) -> None:
        """Drop them."""

    def log_metrics(self, metrics: Mapping[str, float], *, epoch: int) -> None:
        """Drop them."""

    def log_artifact(self, path: Path) -> None:
        """Leave it where it is."""
