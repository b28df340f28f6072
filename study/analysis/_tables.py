"""A study's trials -> the cells that are done, and what tables say of them and of those that are not."""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from skiprec.config import from_flat
from skiprec.evaluation import HIT_RATE_AT
from skiprec.files import canonical_json
from study.queue import RUN_KEY, attempts, cell_status, facts, is_failure
from study.space import effective, experiment

ARCHITECTURES = ("unidirectional", "bidirectional")
PAPER_TEST = {
    ("unidirectional", "S-"): (0.2821, 0.4803, 0.5593, 0.6316),
    ("unidirectional", "S+ session"): (0.3049, 0.5042, 0.5836, 0.6550),
    ("unidirectional", "S+ item"): (0.3073, 0.5088, 0.5867, 0.6554),
    ("bidirectional", "S-"): (0.1945, 0.4203, 0.5135, 0.5989),
    ("bidirectional", "S+ session"): (0.2101, 0.4370, 0.5270, 0.6101),
    ("bidirectional", "S+ item"): (0.2339, 0.4358, 0.5165, 0.5911),
}
"""Seshadri & Knees 2023, Table 1: test HR@1, 5, 10, 20 by architecture and row."""

RATIO = "alpha/beta"
FIRST_SETTINGS = ("architecture", "context", "negative_scope", "alpha", "beta", RATIO, "learning_rate")
ALWAYS_LISTED = ("architecture", "context", "alpha", "beta", "learning_rate")

Z_95 = 1.96


@dataclass(frozen=True, slots=True, kw_only=True)
class DoneCell:
    """A cell with a COMPLETE trial: one configuration, trained once to its end."""

    id: str
    arm: str
    trial: int
    attempt: int
    seed: int
    value: float
    """The study's metric at the chosen epoch."""
    chosen_epoch: int
    epochs: int
    train_seconds: float
    eval_seconds: float
    run_id: str
    """MLflow's; empty where the tracker was away from the trial's start to its end."""
    run_key: str
    """The run's tag, by which it is found then."""
    weights: str
    config: dict[str, Any]
    """Every setting."""
    settings: dict[str, Any]
    """Those that have an effect in this cell, and alpha/beta."""
    metrics: dict[str, float]
    curve: dict[int, float]
    """The study's metric by epoch."""

    @property
    def margin(self) -> float:
        """Half the width of a 95% interval of the value, for sampling of the validation sessions alone."""
        return margin([self.value], self.metrics["val/count"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of Table 1: one use of skips with one architecture, and every cell that tried it."""

    architecture: str
    label: str
    kind: str
    """S-, S+, control or use (of skips in another way than the paper's)."""
    cells: tuple[DoneCell, ...]
    paper: tuple[float, ...] | None
    """The paper's test HR@1, 5, 10, 20, where it has this row."""

    @property
    def best(self) -> DoneCell | None:
        """By the study's metric; the earliest of equals."""
        return best_of(self.cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Where the cells of the study stand, and what their attempts came to."""

    planned: int
    complete: int
    running: int
    waiting: int
    """Not started, stopped, or to be tried again."""
    pruned: int
    failed: int
    """Set aside after their last attempt."""
    failed_attempts: int
    interrupted_attempts: int
    """Stopped and queued again, which is no failure."""
    recovered: int
    """Cells that are complete after an attempt that failed."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.running + self.waiting == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A cell that has no result, and an attempt that failed."""

    cell: str
    arm: str
    attempts: int
    """That failed; interruptions are not counted."""
    error: str
    """Of the last one."""
    status: str
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """Cells that are the same experiment with another seed: how far chance alone moves a value."""

    groups: tuple[tuple[DoneCell, ...], ...]

    @property
    def standard_deviation(self) -> float:
        """Pooled over the groups."""
        squares = sum(statistics.variance(c.value for c in g) * (len(g) - 1) for g in self.groups)
        return math.sqrt(squares / sum(len(g) - 1 for g in self.groups))

    @property
    def largest_range(self) -> float:
        """Between the best and the worst of one group."""
        return max(max(c.value for c in g) - min(c.value for c in g) for g in self.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmCost:
    """What an arm's cells came to, and what they took."""

    arm: str
    planned: int
    cells: tuple[DoneCell, ...]
    pruned_epochs: int = 0
    """Of cells that were ended early: spent like the others."""

    @property
    def epochs(self) -> int:
        """Of all cells."""
        return sum(c.epochs for c in self.cells) + self.pruned_epochs

    @property
    def train_seconds(self) -> float:
        """Of all cells."""
        return sum(c.train_seconds for c in self.cells)

    @property
    def eval_seconds(self) -> float:
        """Of all cells."""
        return sum(c.eval_seconds for c in self.cells)


def done_cells(trials: Iterable[FrozenTrial]) -> tuple[DoneCell, ...]:
    """One for each cell with a COMPLETE trial, its first one, in the order in which they were made."""
    done: dict[str, DoneCell] = {}
    for trial in trials:
        about = facts(trial)
        if trial.state == TrialState.COMPLETE and about["cell"] not in done:
            done[about["cell"]] = DoneCell(
                id=about["cell"],
                arm=about["arm"],
                trial=trial.number,
                attempt=about["attempt"],
                seed=about["seed"],
                value=trial.value,
                chosen_epoch=about["chosen_epoch"],
                epochs=about["epochs"],
                train_seconds=about["train_seconds"],
                eval_seconds=about["eval_seconds"],
                run_id=about.get("run_id", ""),
                run_key=about.get(RUN_KEY, ""),
                weights=about.get("weights", ""),
                config=about["config"],
                settings=shown_settings(about["config"]),
                metrics=about["metrics"],
                curve=dict(sorted(trial.intermediate_values.items())),
            )
    return tuple(done.values())


def shown_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that change anything in a configuration, and alpha/beta: S- has a `context` on paper only."""
    settings = {name: value for name, value in effective(config).items() if name != "threads"}
    if config["alpha"] > 0 and config["beta"] > 0:
        # Rounded, so that 0.1 / 0.3 and 0.2 / 0.6 are one place on an axis.
        settings[RATIO] = round(config["alpha"] / config["beta"], 9)
    return settings


def varying(cells: Iterable[DoneCell]) -> tuple[str, ...]:
    """The settings that take two values or more, those of the paper first."""

    def values(name: str, among: Iterable[DoneCell]) -> set[Any]:
        return {c.settings[name] for c in among if name in c.settings}

    cells = list(cells)
    skip_cells = [c for c in cells if c.config["alpha"] > 0]
    names = {name for c in cells for name in c.settings} - {"seed", RATIO}
    found = {name for name in names if len(values(name, cells)) > 1}
    if all(len(values(name, skip_cells)) > 1 for name in ("alpha", "beta", RATIO)):
        found.add(RATIO)
    return tuple(n for n in FIRST_SETTINGS if n in found) + tuple(sorted(found - set(FIRST_SETTINGS)))


def best_of(cells: Iterable[DoneCell]) -> DoneCell | None:
    """The highest value; the earliest of equals; None where there are no cells."""
    return max(cells, key=lambda c: (c.value, -c.trial), default=None)


def trials_table(trials: Iterable[FrozenTrial]) -> pd.DataFrame:
    """A row for every attempt at a cell, whatever became of it."""
    trials = list(trials)
    configs = [t.user_attrs.get("config", t.params) for t in trials]
    values: dict[str, set[Any]] = {}
    for config in configs:
        for name, value in config.items():
            values.setdefault(name, set()).add(value)
    listed = {name for name, seen in values.items() if len(seen) > 1} | set(ALWAYS_LISTED)
    names = [*ALWAYS_LISTED, *sorted(listed - set(ALWAYS_LISTED) - {"seed", "arm"})]
    every = list(map(facts, trials))
    metrics = sorted({name for about in every for name in about.get("metrics", {})})
    rows = []
    for trial, about, config in zip(trials, every, configs, strict=True):
        row = {"number": trial.number, "state": trial.state.name}
        row |= {name: about.get(name) for name in ("cell", "arm", "attempt", "seed")}
        row |= {name: config.get(name) for name in names}
        row |= {"value": trial.value}
        row |= {name: about.get("metrics", {}).get(name) for name in metrics}
        row |= {name: about.get(name) for name in ("chosen_epoch", "epochs", "train_seconds", "eval_seconds")}
        row |= {name: about.get(name) for name in ("full_eval_seconds", "save_seconds")}
        row |= {"interrupted": bool(about.get("interrupted")), "resumed_from": about.get("resumed_from", 0)}
        row |= {name: about.get(name) for name in ("error", "run_id", "weights")}
        rows.append(row)
    whole = ("attempt", "seed", "chosen_epoch", "epochs", "resumed_from")
    return pd.DataFrame(rows).astype(dict.fromkeys(whole, "Int64"))


def count(trials: Iterable[FrozenTrial], attrs: Mapping[str, Any]) -> Counts:
    """Where the planned cells stand."""
    by_cell = by_planned_cell(trials, attrs)
    status = [cell_status(tried, attrs["recipe"]["max_attempts"]) for tried in by_cell.values()]
    every = [t for tried in by_cell.values() for t in tried]
    return Counts(
        planned=len(by_cell),
        complete=status.count("complete"),
        running=status.count("running"),
        waiting=status.count("waiting"),
        pruned=status.count("pruned"),
        failed=status.count("set aside"),
        failed_attempts=sum(map(is_failure, every)),
        interrupted_attempts=sum(t.state == TrialState.FAIL and not is_failure(t) for t in every),
        recovered=sum(
            any(map(is_failure, tried)) and cell_status(tried, attrs["recipe"]["max_attempts"]) == "complete"
            for tried in by_cell.values()
        ),
    )


def by_planned_cell(trials: Iterable[FrozenTrial], attrs: Mapping[str, Any]) -> dict[str, list[FrozenTrial]]:
    """The trials of every cell; none for a planned cell that no trial has taken up."""
    return {cell: [] for cell in attrs["cells"]} | attempts(list(trials))


def failures(trials: Iterable[FrozenTrial], attrs: Mapping[str, Any]) -> tuple[Failure, ...]:
    """Cells without a result of which an attempt failed: those set aside, and those that will be tried again."""
    found = []
    for cell, tried in by_planned_cell(trials, attrs).items():
        failed = [t for t in tried if is_failure(t)]
        status = cell_status(tried, attrs["recipe"]["max_attempts"])
        if failed and status != "complete":
            last = failed[-1].user_attrs
            found.append(
                Failure(
                    cell=cell,
                    arm=last["arm"],
                    attempts=len(failed),
                    error=last.get("error") or "ended without saying why (killed, or out of memory)",
                    status={"waiting": "to be tried again", "running": "running again"}.get(status, status),
                    settings=failed[-1].params,
                )
            )
    return tuple(found)


def costs(cells: Iterable[DoneCell], trials: Iterable[FrozenTrial], attrs: Mapping[str, Any]) -> tuple[ArmCost, ...]:
    """By arm, in the recipe's order."""
    cells = list(cells)
    pruned = [(t.user_attrs.get("arm"), len(t.intermediate_values)) for t in trials if t.state == TrialState.PRUNED]
    planned = [cell["arm"] for cell in attrs["cells"].values()]
    names = dict.fromkeys([*attrs["recipe"]["arms"], *(c.arm for c in cells)])
    return tuple(
        ArmCost(
            arm=name,
            planned=planned.count(name),
            cells=tuple(c for c in cells if c.arm == name),
            pruned_epochs=sum(epochs for arm, epochs in pruned if arm == name),
        )
        for name in names
    )


# Table 1


def table1(cells: Iterable[DoneCell]) -> tuple[Row, ...]:
    """The paper's six rows, with or without cells, and below each architecture's the controls that were tried."""
    by_row: dict[tuple[str, str, str], list[DoneCell]] = {}
    for cell in cells:
        by_row.setdefault((cell.config["architecture"], *use_of_skips(cell.config)), []).append(cell)
    keys = []
    for architecture in ARCHITECTURES:
        keys += [(architecture, label.split()[0], label) for a, label in PAPER_TEST if a == architecture]
        keys += sorted(k for k in by_row if k[0] == architecture and (k[0], k[2]) not in PAPER_TEST)
    return tuple(
        Row(
            architecture=architecture,
            label=label,
            kind=kind,
            cells=tuple(by_row.get((architecture, kind, label), ())),
            paper=PAPER_TEST.get((architecture, label)),
        )
        for architecture, kind, label in keys
    )


def use_of_skips(config: Mapping[str, Any]) -> tuple[str, str]:
    """How a configuration uses skips: kind and label. S+ means a session's own skips; other negatives are controls."""
    kind, contrast = "S-", "S-"
    if config["alpha"] > 0:
        is_own = config["negative_scope"] in ("session", "past")
        kind = "S+" if is_own else "control"
        contrast = f"S+ {config['context']}" if is_own else f"control {config['negative_scope']}, {config['context']}"
        contrast += ", past skips" if config["negative_scope"] == "past" else ""
    others = ["skip input"] if config.get("skip_input") else []
    weight = config.get("skipped_target_weight", 1.0)
    others += [f"skipped targets x {weight:g}"] if weight != 1 else []
    if not others:
        return kind, contrast
    return ("control" if kind == "control" else "use"), ", ".join([contrast, *others])


def margin(rates: Iterable[float], n: float) -> float:
    """Half a 95% interval of a hit rate, or of the difference of two, from n sessions each: normal approximation."""
    return Z_95 * math.sqrt(sum(p * (1 - p) for p in rates) / n)


def repeats(cells: Iterable[DoneCell]) -> Repeats | None:
    """Groups of cells that differ by their seed alone, alpha and beta counted by their ratio; None without any."""
    groups: dict[str, list[DoneCell]] = {}
    for cell in cells:
        groups.setdefault(canonical_json(experiment(from_flat(cell.config))), []).append(cell)
    found = tuple(tuple(g) for g in groups.values() if len({c.seed for c in g}) > 1)
    return Repeats(groups=found) if found else None


def hit_rates(cell: DoneCell) -> tuple[float, ...]:
    """Validation HR@1, 5, 10, 20."""
    return tuple(cell.metrics[f"val/hr_at_{k}"] for k in HIT_RATE_AT)
