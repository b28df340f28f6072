"""`skiprec`: arguments -> one call into the package, what is printed, exit codes.

Imports are inside the commands, so that --help is quick.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from skiprec.errors import SkiprecError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Next-track recommendation that learns from skips: from listening logs to a trained model.",
)

Data = Annotated[Path, typer.Argument(help="A dataset folder, made by `skiprec prepare`.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def run(application: typer.Typer) -> None:
    """Run a command line to its exit code: 0, 1 (it failed, one line says why), 2 (bad usage), 130 (Ctrl-C)."""
    try:
        application()  # ends with SystemExit: 0, 2 for bad usage, 130 for Ctrl-C
    except SkiprecError as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


def main() -> None:
    """The `skiprec` command."""
    run(app)


@app.command()
def prepare(
    logs: Annotated[list[str], typer.Argument(metavar="LOG...", help="Log files, packed or not, globs, or folders.")],
    out: Annotated[Path, typer.Option(help="The dataset folder to make.")],
    min_length: Annotated[int, typer.Option(help="Sessions with fewer items are dropped.")] = 10,
    max_length: Annotated[int, typer.Option(help="Longer sessions keep their last items.")] = 20,
    skip_threshold: Annotated[int, typer.Option(help="A skip counts from this level on, 1 to 3.")] = 2,
    only_sessions_with_skips: Annotated[bool, typer.Option(help="Drop sessions without any skip.")] = False,
    split: Annotated[
        str, typer.Option(help="leave_one_out: each session's last two tracks are held out; temporal: the last days.")
    ] = "leave_one_out",
    columns: Annotated[
        str, typer.Option(help="What the log's columns mean: a TOML file (see `skiprec columns`), or a name of ours.")
    ] = "mssd",
    on_bad_row: Annotated[str, typer.Option(help="refuse a row that is wrong, or skip it, counted.")] = "refuse",
    bad_rows_at_most: Annotated[float, typer.Option(help="The share of rows that may be skipped so.")] = 0.01,
    pseudonymise: Annotated[
        Path | None, typer.Option(metavar="KEYFILE", help="Replace session and user ids by hashes with this key.")
    ] = None,
    pseudonymise_items: Annotated[
        bool, typer.Option("--pseudonymise-items", help="Those of tracks too: recommendations name hashes then.")
    ] = False,
    sample: Annotated[int | None, typer.Option(help="Keep so many sessions, drawn uniformly.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sample: the same seed draws the same sessions.")] = 1,
    features: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Track features, CSV such as 'tf_*.csv'; may be repeated.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="That read files at the same time.")] = 1,
) -> None:
    """Read listening logs into a dataset folder.

    Example: skiprec prepare logs/*.csv.gz --out data/mssd
    """
    from skiprec.columns import load_map
    from skiprec.prepare import PrepareConfig, prepare_logs  # not skiprec.config: it loads torch
    from skiprec.pseudonyms import read_key
    from skiprec.reading import Reading

    config = PrepareConfig(
        min_length=min_length,
        max_length=max_length,
        skip_threshold=skip_threshold,
        only_sessions_with_skips=only_sessions_with_skips,
        split=split,
    )
    reading = Reading(
        columns=load_map(columns),
        on_bad_row=on_bad_row,
        bad_rows_at_most=bad_rows_at_most,
        key=read_key(pseudonymise) if pseudonymise else None,
        hash_items=pseudonymise_items,
    )
    manifest = prepare_logs(
        logs,
        out,
        config=config,
        reading=reading,
        sample=None if sample is None else (sample, seed),
        processes=processes,
        features=features or (),
    )
    for note, n in manifest.reading["notes"].items():
        print(f"note: in {n:,} of {len(manifest.sources):,} files {note}")
    for reason, n in manifest.reading["left_out"].items():
        print(f"left out: {n:,} rows, {reason}")
    counts, dropped = manifest.counts, {reason: n for reason, n in manifest.dropped.items() if n}
    print(f"{counts['sessions']:,} sessions kept, {counts['items']:,} items, {counts['rows']:,} plays")
    if "features" in manifest.digests:
        print("track features: added (skiprec describe says how they go with skips)")
    print("dropped: " + (", ".join(f"{n:,} {reason}" for reason, n in dropped.items()) or "none"))
    print(f"wrote {out}\nnext: skiprec describe {out}, or study run demo --data {out}")


@app.command()
def columns(
    log: Annotated[Path, typer.Argument(help="One file of a log.")],
    out: Annotated[Path | None, typer.Option(help="A TOML file to write, in place of printing.")] = None,
) -> None:
    """Guess from its first rows what a log's columns mean, as a map to read, mend and give to `skiprec prepare`.

    Example: skiprec columns plays.csv --out my.toml
    """
    from skiprec.files import refuse_existing, write_file
    from skiprec.guess import guess

    text = guess(log)
    if out is None:
        print(text, end="")
        return
    refuse_existing(out)
    write_file(out, text)
    print(f"wrote {out}\nnext: read and mend it, then skiprec prepare {log} --columns {out} --out DIR")


@app.command()
def synthesize(
    out: Annotated[Path, typer.Option(help="The folder of log files to make.")],
    sessions: Annotated[int, typer.Option(help="Sessions to make.")] = 4000,
    items: Annotated[int, typer.Option(help="Tracks in the catalogue.")] = 4000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 1,
    skip_signal: Annotated[float, typer.Option(help="0: skips say nothing about what comes next. 1: they do.")] = 1.0,
    succession: Annotated[float, typer.Option(help="0: no track follows another more than chance. 1: they do.")] = 1.0,
) -> None:
    """Make MSSD-format logs with a known structure, to try everything without real ones.

    Example: skiprec synthesize --out logs --sessions 5000 --skip-signal 0
    """
    from skiprec.synthetic import synthesize_logs

    paths = synthesize_logs(
        out, sessions=sessions, items=items, seed=seed, skip_signal=skip_signal, succession=succession
    )
    print(f"wrote {len(paths)} log files to {out}\nnext: skiprec prepare {out} --out DIR")


@app.command()
def describe(
    data: Data, json: Annotated[bool, typer.Option("--json", help="All figures as JSON; shares are 0 to 1.")] = False
) -> None:
    """Print what decides whether a study can learn: counts, skips, repeats, cold targets, popularity.

    Example: skiprec describe data/mssd
    """
    from skiprec.describe import as_json, render
    from skiprec.describe import describe as described

    print(described(data, as_json if json else render))


@app.command()
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="The run folder to make.")],
    config: Annotated[Path | None, typer.Option(help="A TOML file of settings, such as a report's best.toml.")] = None,
    preset: Annotated[str | None, typer.Option(help="Named settings: paper, released.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="One setting; repeat.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    device: Device = "auto",
) -> None:
    """Train one model.

    Example: skiprec train data/mssd --out runs/first --set alpha=0 --set learning_rate=0.001
    """
    import os

    from skiprec.config import resolve
    from skiprec.dataset import load_dataset
    from skiprec.device import settle
    from skiprec.errors import ConfigError
    from skiprec.files import refuse_existing
    from skiprec.run import CONFIG, RECORD, Run

    if resume:
        if not (out / CONFIG).exists():
            raise ConfigError(f"{out}: no {CONFIG}, expected the folder of an earlier `skiprec train`")
        if not config and not preset:  # others are compared with the run's own, and refused where they differ
            config = out / CONFIG
    elif (out / CONFIG).exists() and not (out / RECORD).exists():
        raise ConfigError(f"{out}: holds a run that is not finished; --resume goes on with it, or choose another --out")
    else:
        refuse_existing(out)
    train_config = resolve(preset, config, settings or [], threads=os.cpu_count() or 1)
    dataset = load_dataset(data)
    run = Run(dataset, train_config, out, device=settle(device, train_config.threads))
    print(run.trainer.learner.optimizer_note)
    try:
        for _ in run.epochs():
            pass
        metrics = run.finish()
    except KeyboardInterrupt:
        print(f"stopped; go on with: skiprec train {data} --out {out} --resume", file=sys.stderr)
        raise typer.Exit(130) from None
    print(f"chose epoch {run.trainer.best_epoch} of {len(run.history)}: val HR@10 {metrics['val/hr_at_10']:.4f}")
    print(f"wrote {out}\nnext: skiprec evaluate {out}")


@app.command()
def evaluate(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, made by `skiprec train`.")],
    split: Annotated[str, typer.Option(help="val or test. Test is for the last word: choose nothing by it.")] = "val",
    data: Annotated[Path | None, typer.Option(help="The dataset folder, if it is no longer where it was.")] = None,
    device: Device = "auto",
) -> None:
    """Print every metric of a run beside the baselines'.

    Example: skiprec evaluate runs/first --split test
    """
    import pandas as pd
    import torch

    from skiprec.baselines import baselines
    from skiprec.dataset import load_dataset
    from skiprec.device import settle
    from skiprec.errors import ConfigError
    from skiprec.evaluation import Evaluator, ModelScorer
    from skiprec.run import load_model, read_record

    if split not in ("val", "test"):
        raise ConfigError(f"--split is '{split}', expected val or test")
    record = read_record(run_folder)
    dataset = load_dataset(data or Path(record["dataset"]))
    model, about = load_model(run_folder, dataset)
    chosen = settle(device, about["config"]["threads"])
    evaluator = Evaluator(dataset, split, chosen, only_targets=about["config"]["only_targets"])
    with torch.no_grad():
        scorers = {"model": ModelScorer(model.to(chosen))} | baselines(dataset)
        table = {name: evaluator.measure(scorer)[0] for name, scorer in scorers.items()}
    print(pd.DataFrame(table).to_string(float_format=lambda value: f"{value:.4f}".removesuffix(".0000")))


@app.command()
def recommend(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A run folder of `skiprec train`, or what `study export` wrote.")
    ],
    session: Annotated[
        str | None, typer.Option(help="Tracks played so far, by the log's ids: A,B:skipped,C (or :0 to :3).")
    ] = None,
    sessions: Annotated[
        Path | None,
        typer.Option(help='Many: a file of JSON, a line each, {"items": [...], "skip_levels": [...]}; - reads input.'),
    ] = None,
    k: Annotated[int, typer.Option(help="How many tracks.")] = 20,
    exclude: Annotated[
        str, typer.Option(help="What is not recommended: session (what was played), skipped, heard, or nothing.")
    ] = "session",
    json: Annotated[bool, typer.Option("--json", help="A line of JSON for each session.")] = False,
    data: Annotated[Path | None, typer.Option(help="The dataset folder, if it is no longer where it was.")] = None,
    device: Device = "auto",
) -> None:
    """Print the tracks that should come next, with their scores.

    Example: skiprec recommend runs/first --session t1,t2:skipped,t3 --k 10
    """
    import dataclasses
    import json as to_json
    import os

    from skiprec.device import settle
    from skiprec.errors import ConfigError
    from skiprec.recommend import Recommender, served
    from skiprec.requests import parse_session, read_sessions
    from skiprec.run import load_recommender

    if (session is None) == (sessions is None):
        raise ConfigError("expected one of --session A,B:skipped,C and --sessions FILE")
    asked = read_sessions(sessions) if sessions else [parse_session(session)]
    chosen, folder = settle(device, os.cpu_count() or 1), served(model)
    recommender = Recommender.load(folder, chosen) if folder else load_recommender(model, data, chosen)
    for number, found in enumerate(recommender.recommend_many(asked, k=k, exclude=exclude), start=1):
        if json:
            print(to_json.dumps(dataclasses.asdict(found), ensure_ascii=False))
            continue
        if len(asked) > 1:
            print(f"session {number}")
        for place, (item, score) in enumerate(zip(found.items, found.scores, strict=True), start=1):
            print(f"{place:>4}  {score:>10.4f}  {item}")
        if found.unknown:
            print(f"unknown, and left out: {', '.join(found.unknown)}")
            if session and any(":" in item for item in found.unknown):
                print("what follows a colon is part of an id, unless it is :skipped or :0 to :3")
        if not found.items:
            print("nothing to recommend: " + ("no track is left" if len(found.unknown) < len(asked[number - 1].items)
                                              else "the model knows none of these tracks"))  # fmt: skip


if __name__ == "__main__":
    main()
