"""Text in rows and columns: what the confirming runs come to."""

from collections.abc import Mapping

from skiprec.evaluation import HIT_RATE_AT
from study.analysis import Confirmed, Effect, TestedClaim, margin, p_value, points, rate
from study.claims import MEASURES
from study.report._tables import Table

TITLES = {"sampled": "sampled", "full": "full", "full_new": "full, new"}


def claims(found: Confirmed) -> Table:
    """Every claim: its p-value, and difference, interval and verdict by each measure; the declared one marked."""

    def cell(tested: TestedClaim, measure: str) -> str:
        effect = tested.effects[measure][tested.claim.k]
        declared = " (declared)" if measure == tested.claim.measure else ""
        return f"{span(effect)}: {tested.verdicts[measure].text}{declared}"

    rows = [
        (
            f"{t.claim.arm} less {t.claim.than}",
            f"HR@{t.claim.k}",
            p_value(t.adjusted_p[t.claim.measure]),
            *(cell(t, measure) for measure in MEASURES),
        )
        for t in found.claims
    ]
    return Table(("claim", "", "p, Holm", *TITLES.values()), tuple(rows), text_columns=6)


def arms(found: Confirmed) -> Table:
    """Every arm's rates on test with their 95% margins, its gain over the first S-, and the baselines'."""
    base = next((arm for arm in found.arms if arm.kind == "S-"), None)
    rows = []
    for arm in found.arms:
        sampled = arm.rates["sampled"]
        gain = "-"
        if base is not None and arm is not base and base.rates["sampled"][10].estimate:
            gain = f"{100 * (sampled[10].estimate / base.rates['sampled'][10].estimate - 1):+.1f}%"
        rows.append(
            (
                arm.name,
                *(with_margin(sampled[k]) for k in HIT_RATE_AT),
                gain,
                with_margin(arm.rates["full"][10]),
                with_margin(arm.rates["full_new"][10]),
                "-" if arm.skip_gap is None else with_margin(arm.skip_gap),
            )
        )
    rows += [(f"baseline: {name}", *baseline(metrics)) for name, metrics in found.baselines.items()]
    header = ("test", *(f"HR@{k}" for k in HIT_RATE_AT), "gain", "HR@10 full", "HR@10 full, new", "skip gap")
    strong = max(range(len(found.arms)), key=lambda i: found.arms[i].rates["sampled"][10].estimate)
    return Table(header, tuple(rows), strong=(strong,))


def baseline(metrics: Mapping[str, float]) -> tuple[str, ...]:
    """A baseline's rates; it has no seeds, so its margins are for the sampling of sessions alone."""

    def cell(name: str, count: str) -> str:
        value = metrics.get(name)
        if value is None:
            return "-"
        return f"{rate(value)} ± {100 * margin([value], metrics[count]):.1f}"

    sampled = [cell(f"test/hr_at_{k}", "test/count") for k in HIT_RATE_AT]
    gap = metrics.get("test/skip_gap")
    full = cell("test/full_hr_at_10", "test/full_count"), cell("test/full_new_hr_at_10", "test/full_new_count")
    return (*sampled, "-", *full, "-" if gap is None else rate(gap))


def groups(tested: TestedClaim) -> Table:
    """One claim among the sessions of each group."""
    rows = [
        (g.grouping, g.group, f"{g.n_sessions:,}", rate(g.ours), rate(g.other), span(g.effect)) for g in tested.groups
    ]
    if tested.skip_gap is not None:
        rows.append(
            ("skip gap", "heard less skipped", f"{tested.skip_gap.n_sessions:,}", "", "", span(tested.skip_gap))
        )
    header = ("sessions by", "", "count", tested.claim.arm, tested.claim.than, "difference, points")
    return Table(header, tuple(rows), text_columns=2)


def paper_rows(found: Confirmed) -> Table:
    """The paper's Table 1, its numbers beside ours."""
    rows = []
    for row in found.table1.rows:
        rates = found.arm(row.arm).rates["sampled"]
        gains = "-" if row.gains is None else " / ".join(f"{100 * row.gains[k]:+.0f}" for k in row.gains)
        ours = (with_margin(rates[k]) for k in HIT_RATE_AT)
        rows.append((f"{row.architecture} {row.label}", *ours, gains, *map(rate, row.paper)))
    for name, metrics in found.baselines.items():
        rows.append((f"baseline: {name}", *baseline(metrics)[: len(HIT_RATE_AT)], "-", *("-",) * len(HIT_RATE_AT)))
    header = ("test", *(f"HR@{k}" for k in HIT_RATE_AT), "gain over S-, %, by K")
    return Table((*header, *(f"paper HR@{k}" for k in HIT_RATE_AT)), tuple(rows), theirs=len(HIT_RATE_AT))


def observations(found: Confirmed) -> Table:
    """What the paper observes in its Table 1, and whether it holds here."""
    rows = []
    for seen in found.table1.observations:
        unit = "% of relative gain" if seen.is_relative else "points of HR@10"
        rows.append((seen.says, seen.verdict, f"{span(seen.effect)} {unit}"))
    return Table(("the paper observes", "here", "difference (95% interval)"), tuple(rows), text_columns=3)


def span(effect: Effect) -> str:
    """`+0.8 (+0.2 to +1.4)`, in points."""
    return f"{points(effect.estimate)} ({points(effect.low)} to {points(effect.high)})"


def with_margin(effect: Effect) -> str:
    """`.4712 ± 1.2`: a rate, and half its 95% interval in points."""
    return f"{rate(effect.estimate)} ± {100 * (effect.high - effect.estimate):.1f}"
