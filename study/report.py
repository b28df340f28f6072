"""An analysed study -> a folder: one HTML page that opens offline, the same as Markdown, tables, figures, settings.

What a figure or a table says is computed in `analysis.py`; here it is put into words' places, escaped, and written.
"""

import base64
import io
import json
import math
import re
import shlex
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from skiprec.config import from_flat, to_toml
from skiprec.evaluation import HIT_RATE_AT
from skiprec.files import new_folder, refuse_existing
from study import plots
from study.analysis import (
    RATIO,
    Analysis,
    DoneCell,
    Row,
    analyse,
    hit_rates,
    points,
    rate,
    varying,
)
from study.estimate import compared, duration

DPI = 150
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

CAPTIONS = {
    "table1": (
        "The best cell of each row",
        "Dots with bars: the best cell of each row with its 95% margin for the sampling of sessions. Faint dots: "
        "the row's other cells, of which the best was picked. Dashed and dotted: baselines; random is in the "
        "table below alone. Whether a difference is shown is said at the top; it is not whether two bars overlap.",
    ),
    "parallel_coordinates": (
        "Every cell through its settings",
        "Each line is a cell, through its settings to its value: dark is high, orange the best. Where a setting "
        "does nothing in a cell, as the context without skips, the line goes through \u201cno effect\u201d.",
    ),
    "slices": (
        "One setting at a time",
        "Each dot is a cell, with all other settings varying behind it. Dashed: the strongest baseline. Where "
        "values are names, dots are spread sideways. Cells that a setting does not affect are left out of its "
        "panel.",
    ),
    "importance": (
        "Which settings matter for S+",
        "PED-ANOVA over the S+ cells: how well each setting alone tells the best tenth of them from the rest, as "
        "shares of the sum. A share says that a setting matters, not which value is good; with fewer than some "
        "fifty cells it is a hint.",
    ),
    "learning_curves": (
        "Learning curves",
        "Faint: every cell. Bold: the best cell of each arm, its chosen epoch marked, its value beside its name. "
        "Dashed: baselines but random.",
    ),
    "cost": (
        "Seconds of each cell",
        "Each dot is a cell; the stroke is the arm's median. Training stops early, so time follows the number of "
        "epochs.",
    ),
}
"""Each figure's title, and what it shows."""


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


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure as PNG, with what it shows in words."""

    name: str
    title: str
    caption: str
    png: bytes

    @property
    def base64(self) -> str:
        """For a page that carries its pictures."""
        return base64.b64encode(self.png).decode("ascii")


def write_report(study: optuna.Study, out: Path) -> list[Path]:
    """Write report.html, report.md, summary.json, trials.csv, best.toml and figures/ into a new folder.

    Args:
        study: Finished or under way; at least one cell complete.
        out: The folder to make.

    Returns:
        The files, the page first.

    Raises:
        OutputError: If `out` exists, or cannot be written; then nothing is left there.
        StudyError: If no cell is complete.
    """
    refuse_existing(out)
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the importance makes a study in memory, and announces it
    found = analyse(study)
    pictures = draw(found)
    page = contents(found, pictures)
    files: dict[str, bytes] = {
        "report.html": html_environment().get_template("report.html.jinja").render(page).encode(),
        "report.md": markdown_environment().get_template("report.md.jinja").render(page).encode(),
        "summary.json": (json.dumps(finite(summary(found)), indent=2, allow_nan=False) + "\n").encode(),
        "trials.csv": found.trials.to_csv(index=False).encode(),
        "best.toml": page["best_toml"].encode(),
    }
    files |= {f"figures/{picture.name}.png": picture.png for picture in pictures.values()}
    with new_folder(out) as folder:
        (folder / "figures").mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
    return [out / name for name in files]


# Pages


def html_environment() -> Environment:
    """Templates for HTML: everything from data or users is escaped."""
    return Environment(
        loader=PackageLoader("study"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def markdown_environment() -> Environment:
    """Templates for Markdown: every value is escaped, but what is marked as Markup."""
    environment = Environment(
        loader=PackageLoader("study"),
        autoescape=False,  # that is HTML's; Markdown's own is in finalize
        finalize=markdown_text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"table": markdown_table, "figure": markdown_figure}
    return environment


def markdown_text(value: Any) -> Any:
    """A value as one line of Markdown that says just that: no tables, tags, links or formulas come of it."""
    if isinstance(value, Markup):
        return value
    text = re.sub(r"\s+", " ", str(value)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|$])", r"\\\1", text)


def markdown_table(table: Table) -> Markup:
    """A table as GitHub prints it, its cells escaped."""
    rule = ["---" if i < table.text_columns else "---:" for i in range(len(table.header))]
    lines = [[markdown_text(cell) for cell in table.header], rule]
    for i, row in enumerate(table.rows):
        cells = [markdown_text(cell) for cell in row]
        lines.append([f"**{cell}**" if cell and i in table.strong else cell for cell in cells])
    return Markup("\n".join(f"| {' | '.join(line)} |" for line in lines))


def markdown_figure(pictures: dict[str, Picture], name: str) -> Markup:
    """A picture by its file, with its caption; nothing where the study has nothing to show in it."""
    if name not in pictures:
        return Markup("")
    title, caption = markdown_text(pictures[name].title), markdown_text(pictures[name].caption)
    return Markup(f"\n![{title}](figures/{name}.png)\n\n{caption}\n")


def contents(found: Analysis, pictures: dict[str, Picture]) -> dict[str, Any]:
    """What both pages print."""
    toml = to_toml(from_flat(found.best.config))
    command = f"skiprec train {shlex.quote(found.attrs['dataset'])} --config best.toml --out RUN"
    return {
        "found": found,
        "attrs": found.attrs,
        "recipe": found.attrs["recipe"],
        "metric": plots.metric_label(found.metric),
        "best_row": next(row for row in found.table1 if found.best in row.cells),
        "best_settings": settings_text(found.best, found),
        "best_toml": toml,
        "command": command,
        # Inside a code block Markdown takes everything as it is, but its end: a path may not hold that.
        "best_toml_block": Markup(toml),
        "command_block": Markup(" ".join(command.replace("`", "'").split())),
        "key_numbers": key_numbers(found),
        "pictures": pictures,
        "tables": {
            "table1": table1(found),
            "other": other_metrics(found),
            "best": best_cells(found),
            "repeats": repeats(found),
            "cost": cost(found),
            "failures": failures(found),
            "data": data(found),
            "origin": origin(found),
        },
        "rate": rate,
        "duration": duration,
    }


def key_numbers(found: Analysis) -> list[tuple[str, str, str]]:
    """The few numbers at the top: what, how much, a remark."""
    best, counts = found.best, found.counts
    n = f"{best.metrics['val/count']:,.0f}"
    numbers = [("best validation HR@10", rate(best.value), f"± {100 * best.margin:.1f} points, {n} sessions")]
    for c in found.verdict.comparisons:
        numbers.append((f"S+ less S-, {c.architecture}", points(c.difference), f"margin {100 * c.margin:.1f} points"))
    if found.baselines:
        name, floor = max(found.baseline_values.items(), key=lambda item: item[1])
        numbers.append((f"best less {name}", points(best.value - floor), f"points; {name} has {rate(floor)}"))
    seconds = sum(arm.train_seconds + arm.eval_seconds for arm in found.arms)
    numbers.append(("cells complete", f"{counts.complete} of {counts.planned}", f"{duration(seconds)} of training"))
    return numbers


# Tables


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


# Pictures


def draw(found: Analysis) -> dict[str, Picture]:
    """Every figure that the study has something to show in, by name."""
    metric = found.metric
    # Random is far below everything, and an axis that reaches it hides what differs.
    baselines = {name: value for name, value in found.baseline_values.items() if name != "random"}
    strongest = {name: value for name, value in baselines.items() if value == max(baselines.values())}
    arms = [arm.arm for arm in found.arms if arm.cells]
    figures = {"table1": plots.table1(found.table1, baselines, metric)}
    if found.varying:
        figures["parallel_coordinates"] = plots.parallel_coordinates(found.cells, found.varying, metric)
        figures["slices"] = plots.slices(found.cells, found.varying, strongest, metric, arms)
    if found.importance.shares:
        figures["importance"] = plots.importance(found.importance.shares)
    figures["learning_curves"] = plots.learning_curves(found.cells, baselines, metric, arms)
    figures["cost"] = plots.cost(found.arms)
    return {name: Picture(name, *CAPTIONS[name], png(figure)) for name, figure in figures.items()}


def png(figure: Figure) -> bytes:
    """A figure as PNG, without a date or a version in it: the same study gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


# Summary


def summary(found: Analysis) -> dict[str, Any]:
    """The report's numbers for programs."""
    attrs, best = found.attrs, found.best
    return {
        "study": found.name,
        "metric": found.metric,
        "split": "val",
        "finished": found.counts.is_finished,
        "created": attrs["created"],
        "seconds_taken": found.seconds_taken,
        "first_estimate": attrs.get("first_estimate"),
        "recipe": attrs["recipe"]["name"],
        "git_commit": attrs["git_commit"],
        "versions": attrs["versions"],
        "dataset": {
            "path": attrs["dataset"],
            "digest": attrs["dataset_digest"],
            "counts": attrs["dataset_counts"],
            "dropped": attrs["dropped"],
        },
        "cells": {
            name: getattr(found.counts, name)
            for name in ("planned", "complete", "running", "waiting", "pruned", "failed")
        },
        "attempts": {
            "failed": found.counts.failed_attempts,
            "interrupted": found.counts.interrupted_attempts,
            "cells_recovered": found.counts.recovered,
        },
        "best": cell_summary(best) | {"margin": best.margin, "config": best.config, "metrics": best.metrics},
        "verdict": {
            "answer": found.verdict.answer,
            "because": found.verdict.because,
            "remarks": list(found.verdict.remarks),
            "comparisons": [
                {
                    "architecture": c.architecture,
                    "of": c.ours.label,
                    "with": c.other.label,
                    "value": c.ours.best.value,
                    "other_value": c.other.best.value,
                    "difference": c.difference,
                    "margin": c.margin,
                    "outcome": c.outcome,
                    "cells": len(c.ours.cells),
                    "other_cells": len(c.other.cells),
                }
                for c in (*found.verdict.comparisons, *found.verdict.controls)
            ],
        },
        "table1": [row_summary(row) for row in found.table1],
        "arms": [
            {
                "arm": arm.arm,
                "planned": arm.planned,
                "complete": len(arm.cells),
                "best": cell_summary(max(arm.cells, key=lambda c: (c.value, -c.trial))) if arm.cells else None,
                "epochs": arm.epochs,
                "train_seconds": arm.train_seconds,
                "eval_seconds": arm.eval_seconds,
            }
            for arm in found.arms
        ],
        "baselines": found.baselines,
        "importance": {"shares": found.importance.shares, "not_said_because": found.importance.reason or None},
        "same_experiment": found.repeats
        and {
            "groups": len(found.repeats.groups),
            "standard_deviation": found.repeats.standard_deviation,
            "largest_range": found.repeats.largest_range,
        },
        "failures": [
            {"cell": f.cell, "arm": f.arm, "status": f.status, "attempts": f.attempts, "error": f.error}
            for f in found.failures
        ],
    }


def cell_summary(cell: DoneCell) -> dict[str, Any]:
    """A cell in short."""
    names = ("id", "arm", "trial", "seed", "value", "chosen_epoch", "run_id", "weights")
    return {name: getattr(cell, name) for name in names}


def row_summary(row: Row) -> dict[str, Any]:
    """A row of Table 1."""
    return {
        "architecture": row.architecture,
        "row": row.label,
        "cells": len(row.cells),
        "best": cell_summary(row.best) | {"margin": row.best.margin, "metrics": row.best.metrics} if row.best else None,
        "paper_test_hit_rates": row.paper,
    }


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {name: finite(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
