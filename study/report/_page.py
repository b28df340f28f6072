"""An analysed study -> the report's answer and its sections, in the order in which they are read."""

import shlex
from collections.abc import Iterable, Mapping

from skiprec.config import from_flat, to_toml
from study.analysis import (
    MEASURE_NAMES,
    Analysis,
    Confirmed,
    in_points,
    percent,
    rate,
    shown,
    some,
)
from study.report import _tables as tables
from study.report._blocks import Block, Code, Heading, Picture, Points, Section, Table, Text, Top
from study.report._reading import glossary, released, uses_released

Pictures = Mapping[str, Picture]


def top(found: Analysis) -> Top:
    """The answer, before everything else."""
    attrs = found.attrs
    recipe = attrs["recipe"]
    data = shown(attrs["dataset"].rstrip("/").split("/")[-1])
    about = (
        f"{shown(recipe.get('description') or recipe['name'])}. Data: {data} ({attrs['dataset_digest'][:8]}), "
        f"{some(attrs['dataset_counts']['sessions'], 'session')}."
    )
    said = confirmed_answer(found) if found.answer else unconfirmed_answer(found)
    return Top(
        name=shown(found.name),
        about=about,
        banners=tuple(banners(found)),
        question=shown(recipe.get("asks") or "Do skips help here?"),
        best=best_settings(found),
        **said,
    )


def confirmed_answer(found: Analysis) -> dict[str, object]:
    """What the confirming runs say."""
    answer, confirmed = found.answer, found.confirmed
    sentences = (answer.figures, answer.measures) if answer.measures else (answer.figures,)
    command = "" if confirmed.counts.is_finished else confirm_command(found)
    return {
        "headline": answer.headline,
        "sentences": sentences,
        "command": Code(command),
        "warnings": answer.warnings,
    }


def unconfirmed_answer(found: Analysis) -> dict[str, object]:
    """What validation alone suggests, and what has to be done before it can be believed."""
    verdict = found.verdict
    if found.confirming:
        state = (
            f"Confirming runs are under way ({found.confirming.complete} of {found.confirming.planned} complete); no "
            "seed is complete in every arm yet. This goes on with them:"
        )
    else:
        state = "This trains the best settings of every arm again over fresh paired seeds, and reads test, once:"
    suggested = f"What single runs on validation suggest: {verdict.answer[0].lower()}{verdict.answer[1:]}. "
    return {
        "headline": "Nothing is confirmed yet.",
        "sentences": (suggested + verdict.because, state),
        "command": Code(confirm_command(found)),
        "warnings": (),
    }


def banners(found: Analysis) -> Iterable[str]:
    """What must be read before the answer."""
    counts = found.counts
    if not counts.is_finished:
        failed = f", {counts.failed} set aside after failing" if counts.failed else ""
        yield (
            f"Unfinished. {counts.complete} of {counts.planned} cells are complete, {counts.running} running, "
            f"{counts.waiting} waiting{failed}. Everything below may still change: study run with the same recipe "
            "continues it."
        )


def best_settings(found: Analysis) -> tuple[str, str]:
    """The best settings in short, and how they were chosen."""
    if found.confirmed:
        arm = found.confirmed.best
        names = dict.fromkeys([*found.varying, "alpha", "beta", "learning_rate"])
        own = arm.runs[0].settings
        text = tables.settings_line({n: own[n] for n in names if n in own and n != tables.RATIO})
        return (
            f"{shown(arm.name)}: {text}.",
            f"Chosen by validation: the highest mean HR@10 over the confirming seeds ({percent(arm.validation)}); on "
            f"test it has {percent(arm.rates['sampled'][10].estimate)}. As best.toml beside this page.",
        )
    best = found.best
    row = next(row for row in found.table1 if best in row.cells)
    return (
        f"{rate(best.value)} validation HR@10, {row.architecture} {row.label}.",
        f"{tables.settings_text(best, found)} (arm {shown(best.arm)}, trial {best.trial}, epoch {best.chosen_epoch} of "
        f"{best.epochs}). The highest of all cells, single runs, which flatters it. As best.toml beside this page.",
    )


def best_toml(found: Analysis) -> str:
    """The best settings as a file."""
    return to_toml(from_flat(dict(found.confirmed.best.config if found.confirmed else found.best.config)))


def confirm_command(found: Analysis) -> str:
    """What goes on from here."""
    workers = found.attrs.get("workers", 1)
    return f"study confirm {shlex.quote(found.name)} --workers {workers}"


def sections(found: Analysis, pictures: Pictures) -> list[Section]:
    """Everything below the answer."""
    confirmed = found.confirmed
    parts = [noise(found, pictures)]
    if confirmed and confirmed.claims:
        parts.append(Section("What was claimed, and what came out", (pictures["claims"],)))
    if confirmed:
        parts.append(claims(found))
        parts.append(arms(confirmed))
        if confirmed.paper:
            parts.append(paper(confirmed))
    if uses_released(found):
        parts.append(Section("What the authors' code does besides", released()))
    if confirmed and confirmed.claims:
        parts.append(groups(confirmed, pictures))
    if not confirmed:
        parts.append(validation(found, pictures))
    parts.append(Section("Learning", (pictures["learning_curves"],)))
    parts.append(search(found, pictures))
    parts.append(Section("Cost", (tables.cost(found), pictures["cost"])))
    parts.append(reproduce(found))
    parts.append(failed(found))
    parts.append(data(found, pictures))
    parts.append(Section("How to read this", (Points(tuple(glossary(found))),)))
    return parts


def noise(found: Analysis, pictures: Pictures) -> Section:
    """What chance alone does, before anything is compared."""
    table = tables.repeats(found)
    blocks: list[Block] = []
    if found.repeats:
        blocks.append(
            Text(
                "Cells of the search that are one experiment have different seeds: repeats, and equal alpha/beta, as "
                f"Adam divides out the size of the loss. In {some(len(found.repeats.groups), 'group')} of such cells "
                f"validation HR@10 has a standard deviation of {100 * found.repeats.standard_deviation:.2f} "
                f"points and a range of up to {100 * found.repeats.largest_range:.1f}: a difference like that between "
                "two single runs is noise."
            )
        )
    else:
        blocks.append(
            Text(
                "No two cells of the search differ by their seed alone, so it does not show how far chance moves a "
                "run; repeats = 1 in the recipe would."
            )
        )
    blocks += [pictures["noise"]] if "noise" in pictures else []
    blocks += [table] if table.rows else []
    return Section("Noise first", tuple(blocks))


def claims(found: Analysis) -> Section:
    """The claims as a table, and as sentences."""
    confirmed = found.confirmed
    family = len(confirmed.claims) + len(confirmed.untested)
    blocks: list[Block] = [
        Text(
            f"{some(family, 'claim')} declared by the recipe before the study ran, tested on test over "
            f"{some(len(confirmed.seeds), 'paired seed')} and {some(confirmed.n_sessions, 'session')} "
            f"({confirmed.n_new:,} with a new target). Differences are in points of HR; p is corrected by Holm for the "
            f"number of claims. Verdicts: helps or hurts where p is below 0.05; no effect where the whole interval is "
            f"within {in_points(confirmed.worthwhile)} of 0; else not enough runs. The declared measure stands "
            "out: by the others the same is asked beside it."
        ),
        tables.claims(confirmed),
    ]
    if found.answer.claims:
        blocks += [Heading("In sentences"), Points(tuple(("", text) for text in found.answer.claims))]
    return Section("Claims", tuple(blocks))


def arms(confirmed: Confirmed) -> Section:
    """How good each arm is."""
    blocks: list[Block] = [
        Text(
            "Test hit rates of each arm's finalist, chosen by validation, with 95% intervals for other seeds and other "
            "sessions. Baselines have no seeds: theirs is the margin for the sampling of sessions alone. Intervals of "
            "two arms may overlap where their paired difference leaves 0 out: for differences read the claims. The arm "
            "that validation prefers stands out."
        ),
        tables.rates(confirmed),
        Heading("By the three measures"),
        tables.measures(confirmed),
    ]
    gains = tables.gains(confirmed)
    if gains.rows:
        blocks += [Heading("Relative gains over S-"), gains]
    return Section("Arms", tuple(blocks))


def paper(confirmed: Confirmed) -> Section:
    """The paper's Table 1 on this data."""
    blocks: list[Block] = [
        Text(
            "The six columns of Seshadri & Knees 2023, Table 1, on test: ours with 95% intervals, the paper's beside "
            "them (one run each, other and far more data, no intervals). They show the paper's order, and are not to "
            "be compared with ours number by number; the baselines are in the tables above."
        )
    ]
    if confirmed.paper.is_misaligned:
        blocks.append(
            Text(
                "S+ here pushes away the skips of other sessions, as the authors' released code does: its negatives "
                "are misaligned with the positions they belong to."
            )
        )
    blocks += [
        tables.paper_columns(confirmed),
        Heading("Relative gains"),
        tables.paper_gains(confirmed),
        Heading("What the paper saw, and whether it holds here"),
        Text(
            "Each observation rests on the comparisons below it, written so that it holds where the difference is "
            "above 0. A comparison holds where its 95% interval leaves 0 out on the paper's side, and is reversed "
            "where it does on the other. They are uncorrected for their number: of twenty such intervals one leaves 0 "
            "out by chance. Relative gains are in percent, their differences in percentage points."
        ),
        tables.observations(confirmed),
    ]
    return Section("The paper's Table 1", tuple(blocks))


def groups(confirmed: Confirmed, pictures: Pictures) -> Section:
    """For whom the first claim holds."""
    tested = confirmed.claims[0]
    gaps = tables.skip_gaps(confirmed)
    blocks: list[Block] = [
        Text(
            f"The first claim's difference in HR@{tested.claim.k}, {MEASURE_NAMES[tested.claim.measure]}, among the "
            "sessions of each group. Groups were not claimed anything of: read them as questions for another study. "
            "Groups of fewer than 50 sessions are left out. All claims by group are in groups.csv."
        ),
        pictures["groups"],
        tables.groups(tested),
    ]
    if gaps.rows:
        blocks += [
            Heading("Skip gap"),
            Text(
                "HR@10 on heard targets less HR@10 on skipped ones. A larger gap means that the model is right more "
                "often where being right is wanted; a model can widen it by getting worse at both."
            ),
            gaps,
        ]
    return Section("By group", tuple(blocks))


def validation(found: Analysis, pictures: Pictures) -> Section:
    """What single runs on validation show, where nothing is confirmed."""
    remarks = [
        *found.verdict.remarks,
        "Every figure of ours is a validation figure of single runs, by which epoch and settings were also chosen. "
        "Test was not read.",
    ]
    return Section(
        "Without and with skips, on validation",
        (
            Points(tuple(("", text) for text in remarks)),
            *validation_rows(found, pictures),
        ),
    )


def validation_rows(found: Analysis, pictures: Pictures) -> tuple[Block, ...]:
    """The search's best cells by row and by measure."""
    return (
        Text(
            "Left: the best cell of each row on validation. Right: the paper's test figures (Seshadri & Knees 2023), "
            "of other and far more data, for the order of the rows and not for the size of the numbers."
        ),
        tables.best_rows(found),
        pictures["table1"],
        Heading("By other measures"),
        Text(
            "Validation HR@10 of the same cells: against 1,000 drawn tracks, or all where there are fewer (sampled), "
            "by which cells are chosen; the whole catalogue (full); new tracks alone (full, new); by whether the "
            "target was heard or skipped, with the difference of the two (skip gap); by whether it was in the session "
            "before."
        ),
        tables.other_metrics(found),
    )


def data(found: Analysis, pictures: Pictures) -> Section:
    """What the sessions are like, and what became of the log's."""
    blocks: list[Block] = [pictures["data"], tables.learnable(found)] if "data" in pictures else []
    return Section("Data", (*blocks, Heading("Counts"), tables.data(found)))


def search(found: Analysis, pictures: Pictures) -> Section:
    """What was tried to find each arm's settings."""
    recipe, counts = found.attrs["recipe"], found.counts
    tried = (
        f"{counts.complete} of {some(counts.planned, 'cell')} ({recipe['sampler']}), each one configuration with one "
        f"seed, chosen by {recipe['metric']} alone. "
    )
    if recipe.get("unequal"):
        tried += (
            "Chances were unequal, as the recipe says (unequal = true): the best of more cells is higher by luck alone."
        )
    elif len({arm.planned for arm in found.arms}) == 1:
        tried += "Every arm had the same number of cells, epochs and patience: equal chances."
    else:
        tried += "The numbers of cells differ: the best of more cells is higher by luck alone."
    blocks: list[Block] = [Text(tried), tables.chances(found)]
    if found.confirmed:
        blocks += validation_rows(found, pictures)
    blocks += [Heading("The best cells"), tables.best_cells(found)]
    if not found.varying:
        blocks.append(Text("No setting differs between the complete cells, so there is nothing to draw."))
    blocks += [pictures[name] for name in ("parallel_coordinates", "slices", "importance") if name in pictures]
    if not found.importance.shares:
        blocks.append(Text(f"Importance of settings: not said, because {found.importance.reason}."))
    return Section("The search", tuple(blocks))


def reproduce(found: Analysis) -> Section:
    """One command for each step."""
    data, name = shlex.quote(found.attrs["dataset"]), shlex.quote(found.name)
    workers = found.attrs.get("workers", 1)
    commands = [f"study run recipe.toml --data {data} --name {name} --workers {workers}"]
    if found.confirmed:
        commands.append(f"study confirm {name} --seeds {found.confirmed.planned_seeds} --workers {workers}")
    commands += [f"study report {name} --out report", f"skiprec train {data} --config best.toml --out RUN"]
    # One command a line: a path may hold a line's end.
    lines = "\n".join(" ".join(command.split()) for command in commands)
    return Section(
        "How to make it again",
        (
            Text(
                "With recipe.toml and best.toml beside this page; on the same kind of device and with as many threads "
                "the numbers are the same, bit for bit. The last command trains the best settings alone."
            ),
            Code(lines),
            tables.origin(found),
            Heading("The best settings, whole"),
            Code(best_toml(found), "toml"),
        ),
    )


def failed(found: Analysis) -> Section:
    """What has no result."""
    counts = found.counts
    table = tables.failures(found)
    text = (
        f"{some(counts.failed_attempts, 'attempt')} of the search failed; {some(counts.recovered, 'cell')} came to a "
        f"result after another attempt. {some(counts.interrupted_attempts, 'attempt')} stopped and queued again, which "
        f"is no failure.{f' {counts.pruned} cells were pruned.' if counts.pruned else ''}"
    )
    if found.confirmed:
        text += f" Confirming runs: {some(found.confirmed.counts.failed_attempts, 'failed attempt')}."
    none = Text("No cell is without a result because of a failure.")
    first: Table | Text = table if table.rows else none
    return Section("What failed", (first, Text(text)))
