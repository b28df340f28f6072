"""How much of a study one `study run` may do: so many cells, so long. What is left waits for the next one."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

import optuna
from optuna.trial import TrialState

from skiprec.errors import ConfigError
from study.queue import attempts

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class Allowance:
    """Kept with the study, where every worker reads it."""

    most_cells: int | None = None
    """That may be begun in all, those of earlier commands included."""
    stop_at: datetime | None = None
    """When workers give their cells back."""

    def is_spent(self, study: optuna.Study, now: datetime) -> bool:
        """Whether no other cell may be begun."""
        if self.is_over(now):
            return True
        if self.most_cells is None:
            return False
        return begun(study) >= self.most_cells

    def is_over(self, now: datetime) -> bool:
        """Whether cells at work are to be given back."""
        return self.stop_at is not None and now >= self.stop_at


def begun(study: optuna.Study) -> int:
    """How many cells were ever begun and are not waiting again."""
    by_cell = attempts(study.get_trials(deepcopy=False))
    return sum(all(t.state != TrialState.WAITING for t in tried) for tried in by_cell.values())


def allow(study: optuna.Study, *, max_cells: int | None, budget_seconds: float | None, now: datetime) -> Allowance:
    """Put an allowance on a study, in place of the last one.

    Args:
        study: Which.
        max_cells: That may still be begun.
        budget_seconds: That may still pass.
        now: With a time zone.
    """
    allowance = Allowance(
        None if max_cells is None else begun(study) + max_cells,
        None if budget_seconds is None else now + timedelta(seconds=budget_seconds),
    )
    stop_at = allowance.stop_at.isoformat() if allowance.stop_at else None
    study.set_user_attr("allowance", {"most_cells": allowance.most_cells, "stop_at": stop_at})
    return allowance


def allowance_of(study: optuna.Study) -> Allowance:
    """That of the last `study run`."""
    about = study.user_attrs.get("allowance", {})
    stop_at = about.get("stop_at")
    return Allowance(about.get("most_cells"), datetime.fromisoformat(stop_at) if stop_at else None)


def seconds(text: str) -> float:
    """`90s`, `45m`, `2h`, `1h30m`, `3d` -> seconds.

    Raises:
        ConfigError: If it is no time.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not parts or "".join(n + unit for n, unit in parts) != text or not any(float(n) for n, _ in parts):
        raise ConfigError(f"--budget is {text!r}, expected a time such as 45m, 2h or 1h30m")
    return sum(float(n) * UNITS[unit] for n, unit in parts)
