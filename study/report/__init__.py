"""An analysed study -> a folder: one HTML page that opens offline, the same as Markdown, tables, figures, settings.

What a figure or a table says is computed in `study.analysis`; here it is put into words' places, escaped, and written.
"""

import json
from collections.abc import Callable
from pathlib import Path

import optuna
import pandas as pd

from skiprec.files import new_folder, refuse_existing
from study.analysis import Analysis, analyse, rate
from study.report._pages import contents, html_environment, markdown_environment, markdown_text
from study.report._pictures import draw
from study.report._summary import finite, summary
from study.report._tables import Table
from study.storage import CONFIRM, Places, database_errors, has_study, open_study
from study.tracking import log_report, open_tracker, read_ranks

__all__ = ["note", "report_study", "write_report"]


def report_study(where: Places, name: str | None, out: Path) -> list[Path]:
    """Write a study's report, with its confirming runs where there are some, and keep it with its run in MLflow.

    Args:
        where: The study's databases.
        name: Of the study; the only one there is if None.
        out: The folder to make.

    Returns:
        The files, the page first.

    Raises:
        OutputError: If `out` exists, or cannot be written; then nothing is left there.
        StudyError: If no cell is complete, or a database fails.
    """
    with database_errors(where):
        study, client = open_study(where, name), open_tracker(where)
        confirming = f"{study.study_name}{CONFIRM}"
        confirming = open_study(where, confirming) if has_study(where, confirming) else None
        if confirming is not None and "cells" not in confirming.user_attrs:  # stopped while it was made
            confirming = None
        found, paths = write_report(study, out, confirming, lambda run_id: read_ranks(client, run_id, "test"))
        log_report(client, study.user_attrs["parent_run"], out, note(found))
    return paths


def write_report(
    study: optuna.Study,
    out: Path,
    confirming: optuna.Study | None = None,
    read_ranks: Callable[[str], pd.DataFrame] | None = None,
) -> tuple[Analysis, list[Path]]:
    """Write report.html, report.md, summary.json, tables, best.toml and figures/ into a new folder.

    Args:
        study: Finished or under way; at least one cell complete.
        out: The folder to make.
        confirming: Its confirming runs, if they were begun.
        read_ranks: MLflow run id -> the test ranks of a confirming run.

    Returns:
        What was found; and the files, the page first.

    Raises:
        OutputError: If `out` exists, or cannot be written; then nothing is left there.
        StudyError: If no cell is complete.
    """
    refuse_existing(out)
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the importance makes a study in memory, and announces it
    found = analyse(study, confirming, read_ranks)
    pictures = draw(found)
    page = contents(found, pictures)
    files: dict[str, bytes] = {
        "report.html": html_environment().get_template("report.html.jinja").render(page).encode(),
        "report.md": markdown_environment().get_template("report.md.jinja").render(page).encode(),
        "summary.json": (json.dumps(finite(summary(found)), indent=2, allow_nan=False) + "\n").encode(),
        "trials.csv": found.trials.to_csv(index=False).encode(),
        "best.toml": page["best_toml"].encode(),
    }
    files |= {
        f"{name}.csv": as_csv(page["tables"][name]) for name in ("claims", "arms", "groups") if name in page["tables"]
    }
    files |= {f"figures/{picture.name}.png": picture.png for picture in pictures.values()}
    with new_folder(out) as folder:
        (folder / "figures").mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
    return found, [out / name for name in files]


def as_csv(table: Table) -> bytes:
    """A table of the page for other programs."""
    return pd.DataFrame(table.rows, columns=list(table.header)).to_csv(index=False).encode()


def note(found: Analysis) -> str:
    """The answer as Markdown, for where MLflow shows a run's description."""
    best = f"Best by validation: {markdown_text(found.best.arm)}, HR@10 {rate(found.best.value)}."
    end = f"{best}\n\nThe whole report, with its figures, is among this run's artifacts: `report/report.html`."
    if found.answer is None:
        said = markdown_text(found.verdict.answer)
        return f"**Not confirmed yet.** {said}, by single runs on validation: `study confirm {found.name}`.\n\n{end}"
    lines = [f"**{markdown_text(found.answer.headline)}.**", *map(markdown_text, found.answer.sentences)]
    lines.append("\n".join(f"- {markdown_text(claim)}" for claim in found.answer.claims))
    return "\n\n".join([*lines, end])
