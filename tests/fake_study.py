"""Studies as workers leave them, without training anything: numbers that a test can work out by hand."""

from datetime import datetime, timedelta

import numpy as np
import optuna
import pandas as pd
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
            "defaults": flatten(from_flat({})),
            "dataset": "data/mini set",
            "dataset_digest": "ab" * 32,
            "dataset_counts": {"sessions": SESSIONS, "items": 900, "rows": 40000, "skipped": 20000},
            "description": {
                "skipped": 0.517,
                "skipped_after_skipped": 0.75,
                "skipped_after_heard": 0.28,
                "no_anchor": 0.031,
                "repeats": 0.128,
                "test_repeated": 0.176,
                "test_skipped": 0.405,
                "test_cold": None,
                "parts": [960, 120, 120],
                "skipped_by_position": [0.5 + 0.01 * t for t in range(19)] + [None],
                "skipped_by_context": {"<b>radio</b> $x": 0.4, "charts": None},
                "contexts": {"<b>radio</b> $x": 30000, "charts": 10000},
                "popularity": [[1, 0.02], [2, 0.03], [5, 0.05], [10, 0.08], [100, 0.18], [900, 1.0]],
            },
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


CONTEXTS = ("editorial_playlist", "radio", "<script>alert('ctx')</script>", "one\nand two", "רדיו עברי")
"""Context types as data may hold them."""


def ranks_table(rng, rates, sessions=1200, contexts=CONTEXTS):
    """Test ranks whose hit rate at 10 is near the rates, by measure; groups by turns.

    Args:
        rng: Decides which sessions hit, and nothing else.
        rates: HR@10 by measure.
    """
    i = np.arange(sessions)
    repeated = i % 3 == 0
    rank = {m: np.where(rng.random(sessions) < r, rng.integers(1, 11, sessions), 500) for m, r in rates.items()}
    return pd.DataFrame(
        {
            "sampled": rank["sampled"].astype(np.float32),
            "full": rank["full"].astype(np.float32),
            "full_new": np.where(repeated, np.nan, rank["full_new"]).astype(np.float32),
            "skipped": i % 4 == 0,
            "repeated": repeated,
            "context": pd.Categorical([contexts[j % len(contexts)] for j in i // 3]),
            "popularity": (i % 3).astype(np.int8),
            "length": (10 + i % 11).astype(np.int8),
        }
    )


class FakeConfirming:
    """A confirming study in memory, its runs put into it arm by arm and seed by seed, and their ranks.

    Args:
        settings: By arm: those of its finalist.
        claims: As a recipe declares them.
        seeds: Planned.
        rates: By arm: HR@10 by measure, or one for all three.
    """

    def __init__(self, settings, claims=(), *, seeds=5, rates=None, sessions=1200, worthwhile=0.01, unequal=False):
        self.fake = FakeStudy(arms=tuple(settings), name="demo-0123abcd-confirm")
        self.study, self.seeds = self.fake.study, [100_001 + i for i in range(seeds)]
        self.settings = {"context": "item", "beta": 0.5}
        self.settings = {arm: self.settings | own for arm, own in settings.items()}
        self.rates = {arm: (rates or {}).get(arm, 0.45) for arm in settings}
        self.sessions, self.tables, self.reads = sessions, {}, []
        recipe = self.study.user_attrs["recipe"] | {
            "name": "demo-confirm", "seeds": self.seeds, "worthwhile": worthwhile, "unequal": unequal,
            "claims": [dict(c) for c in claims], "arms": self.settings,
        }  # fmt: skip
        about = {
            "recipe": recipe,
            "confirms": "demo-0123abcd",
            "finalists": {arm: flatten(from_flat(own | {"seed": 1})) for arm, own in self.settings.items()},
            "splits": ["val", "test"],
            "baselines": {
                name: metrics_at(value) | {k.replace("val/", "test/"): v for k, v in metrics_at(value).items()}
                for name, value in BASELINES.items()
            },
        }
        for key, value in about.items():
            self.study.set_user_attr(key, value)

    def run(self, arm, seed, **changes):
        """A complete run. Its ranks depend on the seed and the arm's rates alone, in an order fixed by the seed."""
        rates = self.rates[arm]
        rates = rates if isinstance(rates, dict) else {"sampled": rates, "full": rates / 2, "full_new": rates / 4}
        value = changes.pop("value", rates["sampled"] + 0.002 * (seed % 3))
        self.fake.add(value, arm=arm, cell=f"{arm} {seed}", seed=seed, fixed=self.settings[arm], **changes)
        run_id = self.study.trials[-1].user_attrs["run_id"]
        self.tables[run_id] = ranks_table(np.random.default_rng(seed), rates, self.sessions)

    def run_all(self, *, but=()):
        """Every arm and seed, arms with the same settings once; none of what `but` names, as (arm, seed's place)."""
        for i, seed in enumerate(self.seeds):
            done = []
            for arm, own in self.settings.items():
                if own not in done and (arm, i) not in but:
                    self.run(arm, seed)
                done.append(own)
        return self

    def read_ranks(self, run):
        """As `write_report` takes it."""
        self.reads.append(run.run_id)
        return self.tables[run.run_id]


CONTROL = "control: another session's skips"


def confirming_study(**changes):
    """Confirming runs of the mixed study: its arms, S+ item above S- when sampled and below it with new tracks."""
    settings = {
        "S-": {"alpha": 0.0, "learning_rate": 0.0005},
        "S+ session": {"context": "session", "alpha": 1.0, "beta": 0.5, "learning_rate": 0.0005},
        "S+ item": {"alpha": 1.0, "beta": 0.5, "learning_rate": 0.0005},
        "other skips": {"alpha": 0.5, "negative_scope": "other_session", "learning_rate": 0.001},
        AWKWARD: {"architecture": "bidirectional", "alpha": 0.0, "learning_rate": 0.001},
    }
    rates = {
        "S-": {"sampled": 0.45, "full": 0.30, "full_new": 0.20},
        "S+ session": {"sampled": 0.452, "full": 0.29, "full_new": 0.19},
        "S+ item": {"sampled": 0.50, "full": 0.301, "full_new": 0.14},
        "other skips": {"sampled": 0.46, "full": 0.28, "full_new": 0.17},
        AWKWARD: 0.41,
    }
    claims = [
        {"arm": "S+ item", "than": "S-"},
        {"arm": "S+ item", "than": "other skips"},
        {"arm": "S+ session", "than": "S-", "metric": "test/full_hr_at_10"},
        {"arm": "S-", "than": AWKWARD},
    ]
    return FakeConfirming(settings, claims, rates=rates, **changes)
