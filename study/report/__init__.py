"""An analysed study -> a folder: one HTML page that opens offline, the same as Markdown, tables, figures, settings.

What a figure or a table says is computed in `study.analysis`; here it is put into words' places, escaped, and written.
"""

import json
from collections.abc import Callable
from pathlib import Path

import optuna
import pandas as pd
import tomli_w

from skiprec.files import new_folder, refuse_existing
from study.analysis import DoneCell, analyse
from study.report._blocks import Table
from study.report._figures import draw
from study.report._page import best_toml, sections, top
from study.report._render import html_page, markdown_environment, markdown_page, markdown_table, markdown_text
from study.report._summary import finite, summary, tables
from study.sending import find_run
from study.storage import Places
from study.tracking import log_report, read_ranks, study_errors, tracked_study

__all__ = ["Table", "markdown_environment", "markdown_table", "markdown_text", "note", "report_study", "write_report"]


def report_study(where: Places, name: str | None, out: Path) -> list[Path]:
    """Write the report on a study, with its confirming runs where there are any, and keep it with the study's run.

    Args:
        where: The study's databases.
        name: Of the study, or of its confirming one; may be None where there is only one.
        out: The folder to make.

    Returns:
        The files, the page first.

    Raises:
        OutputError: If `out` exists, or cannot be written; then nothing is left there.
        StudyError: If there is no such study, no cell of it is complete, or a database failed.
    """
    refuse_existing(out)
    with study_errors(where):
        study, confirming, client = tracked_study(where, name)
        experiment = study.user_attrs["experiment_id"]
        paths = write_report(
            study,
            out,
            confirming=confirming,
            read_ranks=lambda run: read_ranks(client, run.run_id or find_run(client, experiment, run.run_key), "test"),
        )
        log_report(client, study.user_attrs["parent_run"], out, note(out))
    return paths


def write_report(
    study: optuna.Study,
    out: Path,
    confirming: optuna.Study | None = None,
    read_ranks: Callable[[DoneCell], pd.DataFrame] | None = None,
) -> list[Path]:
    """Write report.html, report.md, summary.json, figures/, tables and settings into a new folder.

    Args:
        study: Finished or under way; at least one cell complete.
        out: The folder to make.
        confirming: Its confirming runs, if there are any.
        read_ranks: A confirming run -> its test ranks.

    Returns:
        The files, the page first.

    Raises:
        OutputError: If `out` exists, or cannot be written; then nothing is left there.
        StudyError: If no cell is complete.
    """
    refuse_existing(out)
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the importance makes studies in memory, and announces them
    found = analyse(study, confirming, read_ranks)
    pictures = draw(found)
    answer, parts = top(found), sections(found, pictures)
    files: dict[str, bytes] = {
        "report.html": html_page(answer, parts).encode(),
        "report.md": markdown_page(answer, parts).encode(),
        "summary.json": (json.dumps(finite(summary(found)), indent=2, allow_nan=False) + "\n").encode(),
        "trials.csv": found.trials.to_csv(index=False).encode(),
        "best.toml": best_toml(found).encode(),
        "recipe.toml": tomli_w.dumps(found.attrs["recipe"]).encode(),
    }
    if found.confirmed:
        files |= {name: table.to_csv(index=False).encode() for name, table in tables(found.confirmed).items()}
    files |= {f"figures/{picture.name}.png": picture.png for picture in pictures.values()}
    with new_folder(out) as folder:
        (folder / "figures").mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
    return [out / name for name in files]


def note(report: Path) -> str:
    """The answer as Markdown, for the description of the study's run in MLflow.

    Args:
        report: The folder of a written report, which is kept with the run as `report/`.
    """
    found = json.loads((report / "summary.json").read_text())
    lines = [f"**{found['question'] or 'Do skips help here?'}**"]
    if found["answer"] is None:
        lines += [f"Nothing is confirmed yet. {found['verdict']['answer']}. {found['verdict']['because']}"]
    else:
        said = found["answer"]
        lines += [f"**{said['headline']}**", said["figures"], said["measures"]]
        lines += ["\n".join(f"- {markdown_text(text)}" for text in (*said["warnings"], *said["claims"]))]
    files = sorted(f"report/{path.relative_to(report)}" for path in report.glob("figures/*.png"))
    shown_first = next((f for f in files if f.endswith(("claims.png", "table1.png"))), "")
    lines += [f"Among this run's artifacts: report/report.html; the figure {shown_first}; report/best.toml."]
    settings = found["confirmed"]["best_arm"] if found["confirmed"] else found["best"]["arm"]
    lines += [f"Best settings: those of {settings}."]
    return "\n\n".join(line for line in lines if line) + "\n"
