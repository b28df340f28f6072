"""Text in rows and columns: what the search and its cells come to."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from skiprec.evaluation import HIT_RATE_AT
from study.analysis import RATIO, Analysis, DoneCell, hit_rates, rate, varying
from study.estimate import compared, duration

BEST_SHOWN = 10
"""Cells in the list of the best."""
OTHER_METRICS = {
    "sampled": "val/hr_at_10",
    "full": "val/full_hr_at_10",
    "full, new": "val/full_new_hr_at_10",
    "heard": "val/heard/hr_at_10",
    "skipped": "val/skipped/hr_at_10",
    "skip gap": "val/skip_gap",
    "repeat": "val/repeat/hr_at_10",
    "new": "val/new/hr_at_10",
    "MRR": "val/mrr",
}
"""Column titles and the metrics under them."""


@dataclass(frozen=True, slots=True)
class Table:
    """Text in rows and columns; both pages print it in their own way, and escape it."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1
    """How many columns from the left are text; the rest are numbers, aligned to the right."""
    strong: tuple[int, ...] = ()
    """Rows that stand out."""
    theirs: int = 0
    """How many columns at the right are the paper's."""


def table1(found: Analysis) -> Table:
    """The paper's Table 1 with ours beside it."""
    rows = []
    for row in found.table1:
        paper = tuple(map(rate, row.paper)) if row.paper else ("-",) * len(HIT_RATE_AT)
        if row.best is None:
            ours = ("not in this study", "0", *("-",) * len(HIT_RATE_AT))
        else:
            ours = (settings_text(row.best, found, in_row=True), str(len(row.cells)), *map(rate, hit_rates(row.best)))
        rows.append((f"{row.architecture} {row.label}", *ours, *paper))
    header = ("", "best cell's settings", "cells")
    header += tuple(f"HR@{k}" for k in HIT_RATE_AT) + tuple(f"paper HR@{k}" for k in HIT_RATE_AT)
    strong = tuple(i for i, row in enumerate(found.table1) if found.best in row.cells)
    return Table(header, tuple(rows), text_columns=2, strong=strong, theirs=len(HIT_RATE_AT))


def other_metrics(found: Analysis) -> Table:
    """Each row's best cell, and the baselines, by the other measures and by group."""

    def line(name: str, metrics: dict[str, float]) -> tuple[str, ...]:
        return (name, *(rate(metrics.get(metric)) for metric in OTHER_METRICS.values()))

    rows = [line(f"{row.architecture} {row.label}", row.best.metrics) for row in found.table1 if row.best]
    rows += [line(f"baseline: {name}", metrics) for name, metrics in found.baselines.items()]
    strong = tuple(i for i, row in enumerate(r for r in found.table1 if r.best) if row.best is found.best)
    return Table(("HR@10", *OTHER_METRICS), tuple(rows), strong=strong)


def best_cells(found: Analysis) -> Table:
    """The best cells of all arms."""
    ordered = sorted(found.cells, key=lambda c: (-c.value, c.trial))[:BEST_SHOWN]
    names = [name for name in varying(ordered) if name != RATIO]
    rows = [
        (
            c.arm,
            str(c.trial),
            *(setting(c.settings[n]) if n in c.settings else "no effect" for n in names),
            str(c.seed),
            str(c.chosen_epoch),
            rate(c.value),
            rate(c.metrics.get("val/full_hr_at_10")),
            rate(c.metrics.get("val/full_new_hr_at_10")),
        )
        for c in ordered
    ]
    return Table(("arm", "trial", *names, "seed", "epoch", "HR@10", "full", "full, new"), tuple(rows), strong=(0,))


def repeats(found: Analysis) -> Table:
    """Groups of cells that differ by their seed alone, the widest first."""
    groups = found.repeats.groups if found.repeats else ()
    rows = []
    for group in sorted(groups, key=lambda g: min(c.value for c in g) - max(c.value for c in g)):
        low, high = min(c.value for c in group), max(c.value for c in group)
        first = group[0]
        text = ", ".join(
            f"{name} {setting(first.settings[name])}"
            for name in (*found.varying, *((RATIO,) if RATIO not in found.varying else ()))
            if name in first.settings and name not in ("alpha", "beta")
        )
        rows.append((first.arm, text, str(len(group)), rate(low), rate(high), f"{100 * (high - low):.1f}"))
    return Table(("arm", "settings", "cells", "lowest", "highest", "range"), tuple(rows[:BEST_SHOWN]), text_columns=2)


def cost(found: Analysis) -> Table:
    """What each arm's cells reached and took."""

    def line(name: str, cells: Iterable[DoneCell], planned: int) -> tuple[str, ...]:
        cells = sorted(cells, key=lambda c: c.value)
        done = f"{len(cells)} of {planned}"
        if not cells:
            return (name, done, *("-",) * 7)
        train, evaluation = sum(c.train_seconds for c in cells), sum(c.eval_seconds for c in cells)
        epochs = sum(c.epochs for c in cells)
        values = (cells[-1].value, statistics.median(cell.value for cell in cells), cells[0].value)
        per_epoch = f"{(train + evaluation) / epochs:.1f}"
        return (name, done, *map(rate, values), str(epochs), duration(train), duration(evaluation), per_epoch)

    rows = [line(arm.arm, arm.cells, arm.planned) for arm in found.arms]
    rows.append(line("all", found.cells, found.counts.planned))
    header = ("arm", "cells", "best", "median", "worst", "epochs", "training", "validation", "s / epoch")
    return Table(header, tuple(rows), strong=(len(rows) - 1,))


def failures(found: Analysis) -> Table:
    """Cells without a result because an attempt failed."""
    rows = tuple((f.arm, settings_line(f.settings), f.status, f.error, str(f.attempts)) for f in found.failures)
    return Table(("arm", "settings", "now", "last error", "failed attempts"), rows, text_columns=4)


def data(found: Analysis) -> Table:
    """Counts of the dataset, and what was dropped."""
    rows = [(name.replace("_", " "), f"{n:,}") for name, n in found.attrs["dataset_counts"].items()]
    rows += [(f"dropped: {reason.replace('_', ' ')}", f"{n:,}") for reason, n in found.attrs["dropped"].items()]
    return Table(("sessions and rows", "count"), tuple(rows))


def origin(found: Analysis) -> Table:
    """Where the numbers come from: enough to make them again."""
    attrs, recipe = found.attrs, found.attrs["recipe"]
    rows = [
        ("study", f"{found.name}, made {attrs['created']}"),
        ("recipe", f"{recipe['name']}: {recipe['sampler']}, by {recipe['metric']}, seeds {recipe['seeds']}"),
        ("dataset", attrs["dataset"]),
        ("dataset digest", attrs["dataset_digest"]),
        ("git commit", attrs["git_commit"] or "unknown"),
        ("threads a cell", str(attrs["threads"])),
        ("versions", ", ".join(f"{name} {version}" for name, version in attrs["versions"].items())),
        *([("time", time_taken(found))] if found.seconds_taken is not None else []),
        ("best trial", f"{found.best.trial}, MLflow run {found.best.run_id}, weights {found.best.weights[:16]}"),
    ]
    return Table(("", ""), tuple(rows), text_columns=2)


def time_taken(found: Analysis) -> str:
    """What a finished study took, and what was estimated after its first cells."""
    first = found.attrs.get("first_estimate")
    return compared(first, found.seconds_taken) if first else duration(found.seconds_taken)


def settings_text(cell: DoneCell, found: Analysis, *, in_row: bool = False) -> str:
    """The settings of a cell that vary in the study; in a row of Table 1, without those that the row's name says."""
    said = {"architecture", "context", "negative_scope", RATIO} if in_row else {RATIO}
    said |= {"alpha"} if in_row and cell.config["alpha"] == 0 else set()
    # Alpha, beta and the learning rate are what a reader of Table 1 asks for, so they are there in any case.
    names = dict.fromkeys([*found.varying, "alpha", "beta", "learning_rate"])
    return settings_line({n: cell.settings[n] for n in names if n in cell.settings and n not in said})


def settings_line(settings: dict[str, Any]) -> str:
    """`alpha 0.5, learning_rate 0.001`."""
    return ", ".join(f"{name} {setting(value)}" for name, value in settings.items())


def setting(value: Any) -> str:
    """A setting's value, short; best.toml has every digit."""
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
