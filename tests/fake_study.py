"""Studies as workers leave them, without training anything: numbers that a test can work out by hand."""

from datetime import datetime, timedelta

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from skiprec.config import flatten, from_flat

AWKWARD = "<b>|x $y_"
BASELINES = {"random": 0.01, "most popular": 0.26, "session-popular": 0.39}
RATES = [0.0005, 0.001, 0.005]
LISTS = {"alpha": [0.25, 0.5, 1.0], "beta": [0.25, 0.5, 1.0], "learning_rate": RATES}
SESSIONS = 2500
START = datetime(2026, 11, 21, 14, 0)
"""When the studies' first attempts start."""


def metrics_at(value, **changes):
    """Every metric of a chosen epoch, in fixed proportions to val/hr_at_10."""
    metrics = {"train/loss": 5.0, "val/count": float(SESSIONS), "val/nll": 4.0, "val/mrr": value / 2}
    for prefix, share in (("", 1.0), ("full_", 0.5), ("full_new_", 0.25)):
        for k, part in ((1, 0.5), (5, 0.8), (10, 1.0), (20, 1.1)):
            metrics[f"val/{prefix}hr_at_{k}"] = share * part * value
    groups = {"heard": 1.1, "skipped": 0.8, "repeat": 1.5, "new": 0.9}
    metrics |= {f"val/{name}/hr_at_10": share * value for name, share in groups.items()}
    return metrics | {"val/skip_gap": 0.3 * value} | changes


def space(name, value):
    """A list, as exhaustive recipes have it, where the value is in it; else a range, as searches have it."""
    if value in LISTS[name]:
        return CategoricalDistribution(LISTS[name])
    return FloatDistribution(1e-5, 2.0, log=name == "learning_rate")


class FakeStudy:
    """A study in memory, and attempts put into it one by one."""

    def __init__(self, *, arms=("S-", "S+ item"), planned=0, name="demo-0123abcd", baselines=BASELINES):
        self.study = optuna.create_study(study_name=name, direction="maximize")
        self.cells = {}
        self.planned = planned
        attrs = {
            "recipe": {
                "name": "demo",
                "description": "S- against S+",
                "sampler": "exhaustive",
                "metric": "val/hr_at_10",
                "seeds": [1],
                "max_attempts": 2,
                "settings": {},
                "arms": {arm: {} for arm in arms},
            },
            "dataset": "data/mini set",
            "dataset_digest": "ab" * 32,
            "dataset_counts": {"sessions": SESSIONS, "items": 900, "rows": 40000, "skipped": 20000},
            "dropped": {"incomplete": 1, "too_short": 3, "no_skips": 0},
            "threads": 1,
            "baselines": {name: metrics_at(value) for name, value in baselines.items()},
            "versions": {"skiprec": "0.1.0", "torch": "2.13.0"},
            "git_commit": "748272a",
            "created": "2026-11-21T14:00:00+00:00",
        }
        for key, value in attrs.items():
            self.study.set_user_attr(key, value)
        self._plan()

    def add(self, value=None, *, arm="S+ item", cell=None, attempt=1, seed=1, fixed=None, error=None, interrupted=False,
            state=None, metrics=None, at=0.0, seconds=50.0, curve=None, resumed_from=0, abandoned=False,
            **params):  # fmt: skip
        """One attempt: COMPLETE with a value, FAIL with an error or interrupted, else in the state named.

        Args:
            value: val/hr_at_10 of the chosen epoch.
            fixed: Settings that the arm fixes.
            at: Seconds after START at which it started.
            seconds: That it took, unless it is running.
            curve: What it reported by epoch; four epochs, the third the best, where it has a value.
            abandoned: Whether its worker died.
            resumed_from: Epochs that it was given by an earlier attempt.
            params: Settings that vary in the arm.
        """
        fixed = {"context": "item", "beta": 0.5} | (fixed or {})
        config = flatten(from_flat(fixed | params | {"seed": seed}))
        cell = cell or f"{arm}/{len(self.cells)}"
        attrs = {"cell": cell, "arm": arm, "attempt": attempt, "seed": seed, "config": config}
        attrs |= {"resumed_from": resumed_from} if resumed_from else {}
        attrs |= {"abandoned": True} if abandoned else {}
        if value is not None:
            state = TrialState.COMPLETE
            curve = curve or {1: 0.5 * value, 2: 0.9 * value, 3: value, 4: 0.97 * value}
            result = {"metrics": metrics or metrics_at(value), "chosen_epoch": 3, "epochs": len(curve)}
            result |= {"train_seconds": 40.0, "eval_seconds": 8.0, "full_eval_seconds": 1.0, "save_seconds": 0.5}
            attrs |= {"run_id": f"run{len(self.study.trials)}", "result": result | {"weights": "cd" * 32}}
        elif state is None:
            state = TrialState.FAIL
            attrs |= {"interrupted": True} if interrupted else {}
            attrs |= {"error": error} if error else {}
        spaces = {name: space(name, value) for name, value in params.items()}
        about = {"user_attrs": attrs, "intermediate_values": curve or {}}
        trial = create_trial(state=state, value=value, params=params, distributions=spaces, **about)
        trial.datetime_start = None if state == TrialState.WAITING else START + timedelta(seconds=at)
        trial.datetime_complete = START + timedelta(seconds=at + seconds) if state.is_finished() else None
        self.study.add_trial(trial)
        self.cells[cell] = {"arm": arm, "seed": seed, "params": {}}
        self._plan()
        return cell

    def _plan(self):
        more = {f"later {i}": {"arm": "S-", "seed": 1, "params": {}} for i in range(self.planned - len(self.cells))}
        self.study.set_user_attr("cells", self.cells | more)


def mixed_study(planned=0):
    """Some 40 attempts over five arms: S- and S+ of both contexts, a control, one with an awkward name, failures."""
    arms = ("S-", "S+ session", "S+ item", "other skips", AWKWARD)
    fake = FakeStudy(arms=arms, planned=planned)
    for i, rate in enumerate(RATES):
        penalty = (0.0, 0.01, 0.05)[i]
        fake.add(0.45 - penalty, arm="S-", fixed={"alpha": 0.0}, learning_rate=rate)
        for j, alpha in enumerate(LISTS["alpha"]):
            for k, beta in enumerate(LISTS["beta"][1:]):
                gain = 0.002 * j - 0.001 * k
                params = {"alpha": alpha, "beta": beta, "learning_rate": rate}
                seed = 1 + 1000 * (alpha == beta == 1.0)
                fake.add(0.455 - penalty + gain, arm="S+ session", fixed={"context": "session"}, seed=seed, **params)
                if beta == 0.5:
                    fake.add(0.46 - penalty + gain, arm="S+ item", **params)
    fake.add(0.452, arm="other skips", fixed={"negative_scope": "other_session"}, alpha=0.5, learning_rate=0.001)
    bidirectional = {"architecture": "bidirectional"}
    fake.add(0.41, arm=AWKWARD, fixed=bidirectional | {"alpha": 0.0}, learning_rate=0.001)
    fake.add(0.38, arm=AWKWARD, fixed=bidirectional, alpha=0.5, learning_rate=0.001)
    nan = "TrainingDiverged: epoch 3: mean loss is nan | <script>alert(1)</script>"
    cell = fake.add(arm=AWKWARD, fixed=bidirectional, error=nan, alpha=1.0, learning_rate=0.005)
    fake.add(arm=AWKWARD, cell=cell, attempt=2, fixed=bidirectional, error=nan, alpha=1.0, learning_rate=0.005)
    cell = fake.add(arm="S-", interrupted=True, fixed={"alpha": 0.0, "beta": 1.0}, seed=7, learning_rate=0.001)
    fake.add(0.446, arm="S-", cell=cell, attempt=2, fixed={"alpha": 0.0, "beta": 1.0}, seed=7, learning_rate=0.001)
    cell = fake.add(arm="S+ item", error="OutputError: disk full", alpha=0.25, beta=0.25, learning_rate=0.001)
    fake.add(0.451, arm="S+ item", cell=cell, attempt=2, alpha=0.25, beta=0.25, learning_rate=0.001)
    return fake
