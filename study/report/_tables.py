"""The tables of a report: what `study.analysis` found, as text."""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from skiprec.evaluation import HIT_RATE_AT
from study.analysis import (
    RATIO,
    SHORT_NAMES,
    Analysis,
    Confirmed,
    DoneCell,
    Failure,
    TestedClaim,
    hit_rates,
    margin,
    one_line,
    p_value,
    points,
    rate,
    rate_interval,
    relative,
    shown,
    varying,
    with_interval,
)
from study.claims import MEASURES
from study.estimate import compared, duration
from study.report._blocks import Table

BEST_SHOWN = 10
"""Cells in the list of the best, and groups of repeats."""
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


# Confirming runs


def claims(found: Confirmed) -> Table:
    """Every claim by each measure; the declared one stands out."""
    rows, strong = [], []
    for tested in found.claims:
        claim = tested.claim
        for i, measure in enumerate(MEASURES):
            effect = tested.effects[measure][claim.k]
            is_declared = measure == claim.measure
            if is_declared:
                strong.append(len(rows))
            rows.append(
                (
                    f"{claim.named(shown)}, HR@{claim.k}" if i == 0 else "",
                    SHORT_NAMES[measure] + (" (declared)" if is_declared else ""),
                    tested.verdicts[measure].text,
                    with_interval(effect),
                    p_value(tested.adjusted_p[measure]),
                )
            )
    for claim in found.untested:
        rows.append((claim.named(shown), SHORT_NAMES[claim.measure], "no run", "-", "-"))
    header = ("claim", "measure", "verdict", "difference, points (95%)", "p (Holm)")
    return Table(header, tuple(rows), text_columns=3, strong=tuple(strong))


def rates(found: Confirmed) -> Table:
    """Each arm's and each baseline's HR@K, sampled."""
    best = found.best
    rows = [(arm_name(found, a.name), *(rate_interval(a.rates["sampled"][k]) for k in HIT_RATE_AT)) for a in found.arms]
    rows += [
        (
            f"baseline: {shown(name)}",
            *(baseline_rate(metrics, f"test/hr_at_{k}", found.n_sessions) for k in HIT_RATE_AT),
        )
        for name, metrics in found.baselines.items()
    ]
    strong = tuple(i for i, arm in enumerate(found.arms) if arm is best)
    return Table(("test, sampled (95%)", *(f"HR@{k}" for k in HIT_RATE_AT)), tuple(rows), strong=strong)


def measures(found: Confirmed) -> Table:
    """Each arm's and each baseline's HR@10 by every measure."""
    best = found.best
    asked = {"sampled": found.n_sessions, "full": found.n_sessions, "full_new": found.n_new}
    rows = [(arm_name(found, a.name), *(rate_interval(a.rates[m][10]) for m in MEASURES)) for a in found.arms]
    rows += [
        (
            f"baseline: {shown(name)}",
            *(baseline_rate(metrics, f"test/{prefix}hr_at_10", asked[m]) for m, prefix in MEASURES.items()),
        )
        for name, metrics in found.baselines.items()
    ]
    strong = tuple(i for i, arm in enumerate(found.arms) if arm is best)
    header = ("test HR@10 (95%)", *(f"{SHORT_NAMES[m]}, {n:,} sessions" for m, n in asked.items()))
    return Table(header, tuple(rows), strong=strong)


def gains(found: Confirmed) -> Table:
    """Relative gains over S- at every K."""
    rows = [
        (f"{arm_name(found, arm.name)} over {shown(arm.over)}", *(relative(arm.gains[k]) for k in HIT_RATE_AT))
        for arm in found.arms
        if arm.gains
    ]
    header = ("relative gain, sampled (95%)", *(f"HR@{k}" for k in HIT_RATE_AT))
    return Table(header, tuple(rows))


def arm_name(found: Confirmed, name: str) -> str:
    """An arm, with the one whose runs it shares."""
    same = found.arm(name).same_as
    return shown(name) + (f" (the same runs as {shown(same)})" if same else "")


def baseline_rate(metrics: Mapping[str, float], metric: str, n: int) -> str:
    """A baseline's rate with the margin for the sampling of sessions: it has no seeds."""
    value = metrics.get(metric)
    return "-" if value is None or not n else f"{rate(value)} ± {rate(margin([value], n))}"


def groups(tested: TestedClaim) -> Table:
    """A claim's difference in every group."""
    rows, last = [], None
    for g in tested.groups:
        first = g.grouping if g.grouping != last else ""
        last = g.grouping
        rows.append((first, shown(g.group), f"{g.n_sessions:,}", rate(g.ours), rate(g.other), with_interval(g.effect)))
    claim = tested.claim
    header = ("by", "group", "sessions", shown(claim.arm), shown(claim.than), "difference, points (95%)")
    return Table(header, tuple(rows), text_columns=2)


def skip_gaps(found: Confirmed) -> Table:
    """Each arm's skip gap, and the differences that the claims ask about."""
    rows = [(arm_name(found, a.name), with_interval(a.skip_gap)) for a in found.arms if a.skip_gap]
    rows += [(t.claim.named(shown), with_interval(t.skip_gap)) for t in found.claims if t.skip_gap]
    return Table(("skip gap, HR@10, sampled", "points (95%)"), tuple(rows))


def paper_columns(found: Confirmed) -> Table:
    """The paper's Table 1: its figures beside ours."""
    rows = []
    for row in found.paper.rows:
        ours = found.arm(row.arm).rates["sampled"]
        rows.append(
            (
                f"{row.architecture} {row.label}",
                shown(row.arm),
                *(rate_interval(ours[k]) for k in HIT_RATE_AT),
                *map(rate, row.paper),
            )
        )
    header = (
        "test, sampled (95%)",
        "our arm",
        *(f"HR@{k}" for k in HIT_RATE_AT),
        *(f"paper HR@{k}" for k in HIT_RATE_AT),
    )
    return Table(header, tuple(rows), text_columns=2, theirs=len(HIT_RATE_AT))


def paper_gains(found: Confirmed) -> Table:
    """The relative gains of the paper's S+ columns, and ours."""
    rows = [
        (
            f"{row.architecture} {row.label}",
            *(relative(row.gains[k]) for k in HIT_RATE_AT),
            *(f"{points(row.paper_gains[k])}%" for k in HIT_RATE_AT),
        )
        for row in found.paper.rows
        if row.gains
    ]
    header = ("relative gain over S- (95%)", *(f"HR@{k}" for k in HIT_RATE_AT), *(f"paper HR@{k}" for k in HIT_RATE_AT))
    return Table(header, tuple(rows), theirs=len(HIT_RATE_AT))


def observations(found: Confirmed) -> Table:
    """What the paper saw, and the comparisons that say whether it holds here."""
    rows, strong = [], []
    for observation in found.paper.observations:
        strong.append(len(rows))
        rows.append((observation.text, observation.verdict, "", ""))
        rows += [(c.name, c.outcome, with_interval(c.effect), points(c.paper)) for c in observation.checks]
    header = ("the paper's observation", "here", "points (95%)", "paper")
    return Table(header, tuple(rows), text_columns=2, strong=tuple(strong), theirs=1)


# The search


def best_rows(found: Analysis) -> Table:
    """The best cell of every row of the paper's table, and of the controls, on validation."""
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
    rows += [line(f"baseline: {shown(name)}", metrics) for name, metrics in found.baselines.items()]
    strong = tuple(i for i, row in enumerate(r for r in found.table1 if r.best) if row.best is found.best)
    return Table(("validation HR@10", *OTHER_METRICS), tuple(rows), strong=strong)


def best_cells(found: Analysis) -> Table:
    """The best cells of all arms."""
    ordered = sorted(found.cells, key=lambda c: (-c.value, c.trial))[:BEST_SHOWN]
    names = [name for name in varying(ordered) if name != RATIO]
    rows = [
        (
            shown(c.arm),
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


def repeat_groups(found: Analysis) -> list[tuple[str, tuple[DoneCell, ...]]]:
    """Groups of cells that differ by their seed alone, each with its name, the widest first."""
    groups = found.repeats.groups if found.repeats else ()
    own = {arm.arm: varying(arm.cells) for arm in found.arms}
    named = []
    for group in sorted(groups, key=lambda g: min(c.value for c in g) - max(c.value for c in g)):
        first = group[0]
        # What one arm's cells share tells nothing; alpha and beta are in their ratio.
        told = {n: first.settings[n] for n in own[first.arm] if n in first.settings and n not in ("alpha", "beta")}
        told |= (
            {RATIO: first.settings[RATIO]}
            if {"alpha", "beta"} & set(own[first.arm]) and RATIO in first.settings
            else {}
        )
        named.append((", ".join([first.arm, *([settings_line(told)] if told else [])]), group))
    return named


def repeats(found: Analysis) -> Table:
    """The groups of repeats: a search's, and the confirming runs of each arm."""
    confirmed = found.confirmed
    arms = [arm for arm in confirmed.arms if arm.same_as is None] if confirmed and len(confirmed.seeds) > 1 else []
    rows = [spread_row(f"confirming runs: {shown(arm.name)}", arm.runs) for arm in arms]
    rows += [spread_row(f"search: {shown(name)}", group) for name, group in repeat_groups(found)[:BEST_SHOWN]]
    header = ("runs that differ by their seed alone", "runs", "lowest", "highest", "range, points", "sd, points")
    return Table(header, tuple(rows))


def spread_row(name: str, cells: Iterable[DoneCell]) -> tuple[str, ...]:
    """How far some runs lie apart."""
    values = [c.value for c in cells]
    low, high = min(values), max(values)
    wide, sd = f"{100 * (high - low):.1f}", f"{100 * statistics.stdev(values):.2f}"
    return (name, str(len(values)), rate(low), rate(high), wide, sd)


def chances(found: Analysis) -> Table:
    """What each arm was given to find its settings."""
    rows = []
    for arm in found.arms:
        best = max((c.value for c in arm.cells), default=None)
        epochs = sorted({c.config["max_epochs"] for c in arm.cells})
        limits = " or ".join(map(str, epochs)) or "-"
        rows.append((shown(arm.arm), str(arm.planned), str(len(arm.cells)), limits, str(arm.epochs), rate(best)))
    header = ("arm", "cells planned", "complete", "epochs at most", "epochs trained", "best validation HR@10")
    return Table(header, tuple(rows))


def cost(found: Analysis) -> Table:
    """What each arm's cells, and all confirming runs, reached and took."""

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

    rows = [line(shown(arm.arm), arm.cells, arm.planned) for arm in found.arms]
    rows.append(line("all of the search", found.cells, found.counts.planned))
    if found.confirmed:
        rows.append(line("confirming runs", found.confirmed.cells, found.confirmed.counts.planned))
    header = ("arm", "cells", "best", "median", "worst", "epochs", "training", "validation", "s / epoch")
    return Table(header, tuple(rows), strong=(len(found.arms),))


def failures(found: Analysis) -> Table:
    """Cells and confirming runs without a result because an attempt failed."""

    def line(f: Failure, stage: str) -> tuple[str, ...]:
        return (stage + shown(f.arm), shown(settings_line(f.settings)), f.status, shown(f.error), str(f.attempts))

    rows = [line(f, "") for f in found.failures]
    rows += [line(f, "confirming: ") for f in (found.confirmed.failures if found.confirmed else ())]
    return Table(("arm", "settings", "now", "last error", "failed attempts"), tuple(rows), text_columns=4)


def data(found: Analysis) -> Table:
    """Counts of the dataset, and what was dropped."""
    rows = [(name.replace("_", " "), f"{n:,}") for name, n in found.attrs["dataset_counts"].items()]
    rows += [(f"dropped: {reason.replace('_', ' ')}", f"{n:,}") for reason, n in found.attrs["dropped"].items()]
    if parts := (found.attrs.get("description") or {}).get("parts"):
        names = ("trained on (the first days)", "validation", "test (the last days)")
        rows += [(f"sessions: {name}", f"{n:,}") for name, n in zip(names, parts, strict=True)]
    return Table(("sessions and rows", "count"), tuple(rows))


LEARNABLE = (
    ("skipped", "plays that were skipped", "with few, or nearly all, skips tell little"),
    ("skipped_after_skipped", "skipped after a skipped track", "far above the next line: skips are sticky"),
    ("skipped_after_heard", "skipped after a heard track", ""),
    ("no_anchor", "training sessions with no anchor", "the contrastive loss learns nothing from them"),
    ("repeats", "plays that repeat a track of the session", "with many, the session's own tracks are a strong guess"),
    ("test_repeated", "test targets in their input", "what that guess can find"),
    ("test_skipped", "test targets that were skipped", "a model that is right there recommends what was not wanted"),
    ("test_cold", "test targets never trained on", "no model here can find these but by chance"),
)
"""Shares of the description that decide whether a study can learn, and why."""


def learnable(found: Analysis) -> Table:
    """What decides whether a study can learn from this data."""
    about = found.attrs["description"]
    rows = [(label, why, "-" if about[name] is None else f"{about[name]:.1%}") for name, label, why in LEARNABLE]
    return Table(("share of", "what it means", "here"), tuple(rows), text_columns=2)


def origin(found: Analysis) -> Table:
    """Where the numbers come from: enough to make them again."""
    attrs, recipe, confirmed = found.attrs, found.attrs["recipe"], found.confirmed
    rows = [
        ("study", f"{shown(found.name)}, made {attrs['created']}"),
        ("recipe", f"{shown(recipe['name'])}: {recipe['sampler']}, by {recipe['metric']}, seeds {recipe['seeds']}"),
        ("dataset", shown(attrs["dataset"])),
        ("dataset digest", attrs["dataset_digest"]),
        ("git commit", attrs["git_commit"] or "unknown"),
        ("threads a cell", str(attrs["threads"])),
        ("versions", ", ".join(f"{name} {version}" for name, version in attrs["versions"].items())),
        *([("time", time_taken(found))] if found.seconds_taken is not None else []),
    ]
    if confirmed:
        about = confirmed.attrs
        rows.append(("confirming study", f"{shown(confirmed.name)}, made {about['created']}"))
        rows.append(("confirming seeds", ", ".join(map(str, confirmed.seeds))))
        if about["git_commit"] != attrs["git_commit"]:
            rows.append(("confirming commit", about["git_commit"] or "unknown"))
        rows += [
            (f"weights of {shown(arm.name)}", ", ".join(run.weights[:12] for run in arm.runs))
            for arm in confirmed.arms
            if arm.same_as is None
        ]
    best = found.best
    rows.append(("best trial", f"{best.trial}, MLflow run {best.run_id}, weights {best.weights[:16]}"))
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


def settings_line(settings: Mapping[str, Any]) -> str:
    """`alpha 0.5, learning_rate 0.001`."""
    return ", ".join(f"{name} {setting(value)}" for name, value in settings.items())


def setting(value: Any) -> str:
    """A setting's value, short; best.toml has every digit."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).lower() if isinstance(value, bool) else one_line(value)
