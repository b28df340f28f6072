"""`study`: arguments -> one call into the package, what is printed, exit codes. Imports inside, so --help is quick."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from skiprec.cli import Device, run
from study.stopping import remembered

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Which settings, and which use of skips, recommend the next track best: studies of many trainings.",
)

RECIPES = "controls, data_size, demo, paper, search, table1, temperature, threshold, uses, or a TOML file of your own."
Name = Annotated[str | None, typer.Argument(help="The study; may be left out where there is only one.")]
Mlruns = Annotated[Path, typer.Option(help="The folder of the databases, artifacts and resume points.")]
Storage = Annotated[str | None, typer.Option(help="Optuna's database, if it is not MLRUNS/optuna.db.")]
CheckpointDir = Annotated[
    Path | None, typer.Option(help="Of the resume points, if not in MLRUNS: a folder that all machines share.")
]
TrialsPerDevice = Annotated[
    int,
    typer.Option(min=1, max=32, help="That each process has at work side by side, for a GPU that one does not fill."),
]
TrackingUri = Annotated[str | None, typer.Option(help="MLflow's database or server, if it is not MLRUNS/mlflow.db.")]


def main() -> None:
    """The `study` command."""
    run(app)


@contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM end what can be gone on with: exit code 130, and a line that says so."""
    try:
        with remembered(raises=True):
            yield
    except KeyboardInterrupt:
        print("stopped; the same command goes on with it", file=sys.stderr)
        raise typer.Exit(130) from None


@app.command("run")
def run_study(
    recipe: Annotated[str, typer.Argument(help=RECIPES)],
    data: Annotated[Path, typer.Option(help="A dataset folder, made by `skiprec prepare`.")],
    workers: Annotated[
        int, typer.Option(help="Processes; the cores are divided among them. 0: make it, for workers elsewhere.")
    ] = 1,
    trials_per_device: TrialsPerDevice = 1,
    threads: Annotated[int | None, typer.Option(help="Of each trial, if not the cores by the trials at once.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the study, if not the recipe's and the data's.")] = None,
    mlruns: Mlruns = Path("mlruns"),
    storage: Storage = None,
    tracking_uri: TrackingUri = None,
    checkpoint_dir: CheckpointDir = None,
    grace_seconds: Annotated[
        float, typer.Option(help="How long a worker may be silent before its cell goes to another one.")
    ] = 120.0,
    budget: Annotated[str | None, typer.Option(help="Stop after so long, such as 45m, 2h or 1h30m.")] = None,
    max_cells: Annotated[int | None, typer.Option(help="Stop after so many more cells.")] = None,
    device: Device = "auto",
    offline: Annotated[
        bool, typer.Option("--offline", help="Go on without MLflow; `study sync` tells it later.")
    ] = False,
) -> None:
    """Create a study, or go on with it, until every cell is done. Ctrl-C stops; the same command continues.

    Example: study run demo --data data/mssd --workers 2
    """
    from study.allowance import seconds

    places = {"mlruns": mlruns, "storage": storage, "tracking_uri": tracking_uri, "checkpoint_dir": checkpoint_dir}
    options = {"workers": workers, "trials_per_device": trials_per_device, "threads": threads, "name": name}
    options |= {"grace_seconds": grace_seconds, "device": device}
    limits = {"max_cells": max_cells, "budget_seconds": seconds(budget) if budget else None, "offline": offline}
    with stoppable():
        from study.run import launch
        from study.status import untold

        handle = launch(recipe, data, **places, **options, **limits)
    stage = handle.progress()
    print(
        f"study {handle.name}: {stage.complete} of {stage.planned} cells complete, {stage.failed} failed"
        + (f", {stage.pruned} pruned" if stage.pruned else "")
    )
    if waits := untold(handle.where.spool(handle.name)):
        print(waits)
    if not stage.is_finished and workers:
        print("the rest waits; the same command goes on with it, without --budget and --max-cells to the end")
        return
    if not stage.is_finished:
        print(f"next: study worker {handle.name}, wherever these databases and the data can be reached; study status")
        return
    print(
        f"next: study confirm {handle.name} --workers {workers}, study report {handle.name} --out report, or study ui"
    )


@app.command("plan")
def plan_study(
    recipe: Annotated[str, typer.Argument(help=RECIPES)],
    data: Annotated[Path, typer.Option(help="A dataset folder, made by `skiprec prepare`.")],
    workers: Annotated[int, typer.Option(help="Processes that would share the cells.")] = 1,
    device: Device = "auto",
) -> None:
    """Print what a recipe would try and claim, and how long that takes at most. Trains a few batches, writes nothing.

    Example: study plan controls --data data/mssd --workers 2
    """
    from skiprec.dataset import load_dataset
    from study.plan import plan_study as text
    from study.space import load_recipe

    print(text(load_recipe(recipe), load_dataset(data), workers=workers, device=device))


@app.command()
def confirm(
    name: Name = None,
    seeds: Annotated[int | None, typer.Option(help="Paired seeds of every arm, 5 or more.")] = None,
    detect: Annotated[
        float | None, typer.Option(help="Take as many seeds as find this difference of HR@10, by the noise seen.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes; the cores are divided among them.")] = 1,
    trials_per_device: TrialsPerDevice = 1,
    mlruns: Mlruns = Path("mlruns"),
    storage: Storage = None,
    tracking_uri: TrackingUri = None,
    checkpoint_dir: CheckpointDir = None,
    device: Device = "auto",
) -> None:
    """Train the best settings of every arm again over fresh paired seeds, and read test, once.

    Example: study confirm --detect 0.005 --workers 2
    """
    by = {"workers": workers, "trials_per_device": trials_per_device, "device": device}
    with stoppable():
        from study.confirm import confirm as confirm_study
        from study.storage import places

        where = places(mlruns, storage, tracking_uri, checkpoint_dir)
        handle = confirm_study(where, name, seeds=seeds, detect=detect, **by)
    stage = handle.progress()
    print(f"study {handle.name}: {stage.complete} of {stage.planned} runs complete, {stage.failed} failed")
    print(f"next: study report {handle.study.user_attrs['confirms']} --out report")


@app.command()
def table1(
    data: Annotated[Path, typer.Option(help="A dataset folder, made by `skiprec prepare`.")],
    out: Annotated[Path, typer.Option(help="The report's folder, to be made.")] = Path("table1"),
    recipe: Annotated[str, typer.Option(help="A TOML file of the same rows, for a smaller search.")] = "table1",
    preset: Annotated[
        str | None, typer.Option(help="Settings in place of a search: paper, or released (the authors' code).")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Paired seeds of every row, 5 or more.")] = None,
    workers: Annotated[int, typer.Option(help="Processes; the cores are divided among them.")] = 1,
    mlruns: Mlruns = Path("mlruns"),
    storage: Storage = None,
    tracking_uri: TrackingUri = None,
    device: Device = "auto",
) -> None:
    """The paper's Table 1 on this data: search, confirming runs and report in one. The same command continues.

    Example: study table1 --data data/mssd --workers 2
    """
    from skiprec.files import refuse_existing

    refuse_existing(out)
    options = {"seeds": seeds, "workers": workers, "device": device}
    with stoppable():
        from study.storage import places
        from study.table1 import run_table1, table1_recipe

        where = places(mlruns, storage, tracking_uri)
        for path in run_table1(table1_recipe(recipe, preset), data, out, where=where, **options):
            print(f"wrote {path}")
    print(f"next: open {out / 'report.html'}")


@app.command()
def worker(
    name: Annotated[str, typer.Argument(help="The study.")],
    mlruns: Mlruns = Path("mlruns"),
    storage: Storage = None,
    tracking_uri: TrackingUri = None,
    checkpoint_dir: CheckpointDir = None,
    device: Device = "auto",
    trials_per_device: TrialsPerDevice = 1,
    parent: Annotated[int | None, typer.Option(hidden=True, help="The process without which this one stops.")] = None,
) -> None:
    """Join a study that was made, from this machine or another one, until its cells are done.

    SIGTERM gives the cell back at its last epoch's end, and ends with exit code 75 (try again). `study run` starts its
    own of these.

    Example: study worker NAME --storage postgresql+psycopg://me@host/optuna --tracking-uri http://host:5000
    """
    from skiprec.errors import TrainingStopped
    from study.heartbeat import LOST
    from study.storage import places
    from study.worker import work

    try:
        work(places(mlruns, storage, tracking_uri, checkpoint_dir), name, device, parent, trials_per_device)
    except TrainingStopped:  # as it was told: the cell is in the queue again
        # A scheduler is to start another one in its place.
        raise typer.Exit(0 if parent is not None else LOST) from None


@app.command()
def status(
    name: Name = None,
    mlruns: Mlruns = Path("mlruns"),
    storage: Storage = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Print where a study and its confirming runs stand: cells by state, best so far, time left, what failed.

    Example: study status
    """
    from study.reaper import end_dead
    from study.status import describe, untold
    from study.storage import database_errors, open_studies, places

    where = places(mlruns, storage, tracking_uri)
    with database_errors(where):
        for study in open_studies(where, name):
            try:
                if "cells" in study.user_attrs and (ended := end_dead(where, study)):
                    print(f"{ended} trials whose worker is gone were ended; their cells wait for another one")
            except OSError as error:  # somebody else's study, on a disk that may be read alone
                print(f"workers that are gone were not looked for: {where.mlruns}: {error.strerror}")
            print(describe(study))
            if waits := untold(where.spool(study.study_name)):
                print(waits)


@app.command()
def export(
    name: Name = None,
    *,
    out: Annotated[Path, typer.Option(help="The folder of the model, to be made.")],
    run_folder: Annotated[
        Path | None, typer.Option("--run", metavar="RUN", help="Of a `skiprec train`, in place of a study.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The dataset folder, if it is no longer where it was.")] = None,
    register: Annotated[
        str | None, typer.Option(help="A name in MLflow's model registry: a new version of it.")
    ] = None,
    program: Annotated[
        bool, typer.Option("--torch-export", help="Also write scores.pt2, for services without Python.")
    ] = False,
    mlruns: Mlruns = Path("mlruns"),
    storage: Storage = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Write the best model as an MLflow model that serves: chosen by validation, with a model card.

    Example: study export --out model
    """
    from skiprec.errors import ConfigError
    from study.export import export_run, export_study
    from study.storage import places

    if run_folder and (name or register):
        raise ConfigError("--run is for a training of its own: it goes with no study's name, and not with --register")
    if run_folder:
        made = export_run(run_folder, out, data=data, program=program)
    else:
        where = places(mlruns, storage, tracking_uri)
        made = export_study(where, name, out, data=data, register=register, program=program)
    print("\n".join(made))
    print(f"next: skiprec recommend {out} --session ID,ID:skipped, or mlflow models serve -m {out} --env-manager local")


@app.command("sync")
def sync_study(
    name: Name = None,
    mlruns: Mlruns = Path("mlruns"),
    storage: Storage = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Send MLflow what it could not be told while it was away, of a study and its confirming runs, from this machine.

    Example: study sync
    """
    from study.status import number
    from study.storage import open_studies, places
    from study.sync import sync
    from study.tracking import study_errors

    where = places(mlruns, storage, tracking_uri)
    with study_errors(where):
        for study in open_studies(where, name):
            records, runs = sync(where, study)
            print(f"study {study.study_name}: sent {number(records, 'record')} of {number(runs, 'run')} to the tracker")


@app.command()
def doctor(
    name: Name = None,
    mlruns: Mlruns = Path("mlruns"),
    storage: Storage = None,
    tracking_uri: TrackingUri = None,
    checkpoint_dir: CheckpointDir = None,
) -> None:
    """Try all that a study needs: databases, tracker, folders, clock, versions, data. Exit code 1 if one is wrong.

    Example: study doctor --storage postgresql+psycopg://me@host/optuna --tracking-uri http://host:5000
    """
    from study.doctor import examine
    from study.storage import places

    is_well = True
    for finding in examine(places(mlruns, storage, tracking_uri, checkpoint_dir), name):
        print(finding, flush=True)
        is_well = is_well and finding.is_well
    if not is_well:
        raise typer.Exit(1)


@app.command()
def report(
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    name: Name = None,
    mlruns: Mlruns = Path("mlruns"),
    storage: Storage = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Write what a study shows: a page that opens offline, tables, figures, and the best configuration.

    Example: study report --out report
    """
    from study.report import report_study
    from study.storage import places
    from study.tracking import study_errors

    where = places(mlruns, storage, tracking_uri)
    with study_errors(where):
        for path in report_study(where, name, out):
            print(f"wrote {path}")
    print(f"next: open {out / 'report.html'}")
    if (out / "best.toml").exists():
        print(f"or train the best again: skiprec train DATA --config {out / 'best.toml'} --out RUN")


@app.command()
def ui(
    mlruns: Mlruns = Path("mlruns"),
    tracking_uri: TrackingUri = None,
    port: Annotated[int, typer.Option(help="On loopback.", min=1, max=65535)] = 5000,
) -> None:
    """Serve the MLflow UI on loopback until Ctrl-C.

    Example: study ui --port 5001
    """
    from study.storage import places
    from study.ui import serve

    try:
        serve(places(mlruns, None, tracking_uri), port)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


if __name__ == "__main__":
    main()
