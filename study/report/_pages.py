"""What both pages print, and how: every value from data or users is escaped."""

import re
import shlex
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from skiprec.config import from_flat, to_toml
from study import plots
from study.analysis import WHY_MEASURES_DIFFER, Analysis, points, rate
from study.estimate import duration
from study.report import _confirmed_tables as confirmed_tables
from study.report import _tables as tables
from study.report._pictures import Picture
from study.report._tables import Table, settings_text


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
        "why_measures_differ": WHY_MEASURES_DIFFER,
        "released": any(is_released(cell.config) for cell in found.cells),
        "tables": confirmed(found)
        | {
            "table1": tables.table1(found),
            "other": tables.other_metrics(found),
            "best": tables.best_cells(found),
            "repeats": tables.repeats(found),
            "cost": tables.cost(found),
            "failures": tables.failures(found),
            "data": tables.data(found),
            "origin": tables.origin(found),
        },
        "rate": rate,
        "duration": duration,
    }


def confirmed(found: Analysis) -> dict[str, Table]:
    """The tables of the confirming runs; none where there are no such runs."""
    if found.confirmed is None:
        return {}
    made = {
        "claims": confirmed_tables.claims(found.confirmed),
        "arms": confirmed_tables.arms(found.confirmed),
        "groups": confirmed_tables.groups(found.confirmed.claims[0]),
    }
    if found.confirmed.table1 is not None:
        made["paper"] = confirmed_tables.paper_rows(found.confirmed)
        made["observations"] = confirmed_tables.observations(found.confirmed)
    return made


def is_released(config: Mapping[str, Any]) -> bool:
    """Whether a cell does what the authors' code does, as far as settings reach."""
    return config["negative_scope"] == "released" or (config["norm"], config["positions"]) == ("post", "from_start")


def key_numbers(found: Analysis) -> list[tuple[str, str, str]]:
    """The few numbers at the top: what, how much, a remark."""
    best, counts = found.best, found.counts
    if found.confirmed is not None:
        return confirmed_numbers(found)
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


def confirmed_numbers(found: Analysis) -> list[tuple[str, str, str]]:
    """The same, of the confirming runs."""
    first = found.confirmed.claims[0]
    top = max(found.confirmed.arms, key=lambda arm: arm.rates["sampled"][10].estimate)
    rates = {name: metrics["test/hr_at_10"] for name, metrics in found.confirmed.baselines.items()}
    name, floor = max(rates.items(), key=lambda item: item[1])
    reached = top.rates["sampled"][10].estimate
    seeds = len(found.confirmed.seeds)
    n_seeds = f"{seeds} of {found.confirmed.planned_seeds}" if seeds < found.confirmed.planned_seeds else str(seeds)
    seconds = sum(arm.train_seconds + arm.eval_seconds for arm in found.arms)
    seconds += sum(run.train_seconds + run.eval_seconds for arm in found.confirmed.arms for run in arm.runs)
    return [
        (f"{first.claim.arm} less {first.claim.than}", points(first.effect.estimate),
         f"points; {points(first.effect.low)} to {points(first.effect.high)}"),
        ("best on test, HR@10", rate(reached), top.name),
        (f"less {name}", points(reached - floor), f"points; {name} has {rate(floor)}"),
        ("paired seeds", n_seeds, f"{found.confirmed.n_sessions:,} sessions"),
        ("cells", f"{found.counts.complete} of {found.counts.planned}", f"{duration(seconds)} of training in all"),
    ]  # fmt: skip
