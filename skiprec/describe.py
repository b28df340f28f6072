"""Counts of a dataset folder that decide whether a study can learn from it, and their text. Computes, then renders."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int

from skiprec.dataset import Dataset, Sessions, feature_differences, held_out, load_dataset, read_table, training_prefix
from skiprec.digests import combined
from skiprec.losses import next_positive
from skiprec.negatives import first_occurrence
from skiprec.schema import PADDING, SESSIONS

# S sessions, T positions (padding on the right).

PAPER = {"sessions": "450K", "items": "1M", "rows": "2M", "skipped": "15%"}
"""What the paper says of its data. These cannot all hold: 450K sessions of 10 or more are at least 4.5M rows."""
TOP = 100
AT_ONCE = 4096
"""Sessions whose positions are compared with each other at once."""


def describe(folder: str | Path, form: Callable[[Mapping[str, Any]], str]) -> str:
    """What is in a dataset folder, in a form: `render`'s or `as_json`'s.

    Raises:
        DatasetError: If it is not a dataset folder, or was changed.
    """
    return form(counts(load_dataset(folder)))


def counts(dataset: Dataset) -> dict[str, Any]:
    """Every figure of the description, over kept sessions and their kept rows; shares are 0 to 1."""
    items, lengths = dataset.items.numpy(), dataset.lengths.numpy()
    levels, skipped = dataset.skip_levels.numpy(), dataset.skipped.numpy()
    plays = dataset.plays.numpy()
    is_real = np.arange(items.shape[1]) < lengths[:, None]
    rows = np.repeat(np.arange(len(items)), lengths)
    n_rows = int(lengths.sum())
    said = dataset.manifest.counts

    val, test = held_out(dataset, "val"), held_out(dataset, "test")
    targets = test.targets.numpy()
    prefix = training_prefix(dataset)
    is_split_by_date = dataset.parts is not None
    repeats, repeats_at_once = repeated(items, is_real)
    all_plays = np.bincount(items[is_real], minlength=len(plays))[1:]
    pairs = pd.DataFrame({"session": rows, "item": items[is_real]}).drop_duplicates()
    in_sessions = np.bincount(pairs["item"], minlength=len(plays))[1:]
    sequences = pd.Series([row.tobytes() for row in items])
    table = read_table(dataset.path / "sessions.parquet", SESSIONS)
    dates = combined(table["date"]).to_pylist()
    context = combined(table["contexts"]).flatten()
    context_names, context_of_row = context.dictionary.to_pylist(), context.indices.to_numpy()
    by_context = np.bincount(context_of_row, minlength=len(context_names))
    changes_context = np.zeros(len(items), dtype=bool)
    changes_context[rows[1:][(np.diff(context_of_row) != 0) & (np.diff(rows) == 0)]] = True

    return {
        "digest": dataset.digest,
        "settings": dict(dataset.manifest.settings),
        "sources": len(dataset.manifest.sources),
        "rows_read": said["rows_read"],
        "sessions_read": said["sessions_read"],
        "dropped": dict(dataset.manifest.dropped),
        "truncated": said["truncated"],
        "sessions": len(items),
        "items": dataset.n_items,
        "rows": n_rows,
        "lengths": {int(k): int(n) for k, n in zip(*np.unique(lengths, return_counts=True), strict=True)},
        "skip_1": share((levels == 3)[is_real]),
        "skip_2": share((levels >= 2)[is_real]),
        "skip_3": share((levels >= 1)[is_real]),
        "not_skipped": (said["skip_level_0"] - said["no_flag"]) / n_rows,
        "no_flag": said["no_flag"] / n_rows,
        "not_nested": said["not_nested"],
        "skipped": share(skipped[is_real]),
        "skipped_after_skipped": share(skipped[:, 1:][is_real[:, 1:] & skipped[:, :-1]]),
        "skipped_after_heard": share(skipped[:, 1:][is_real[:, 1:] & ~skipped[:, :-1]]),
        "sessions_with_skip": share(skipped.any(1)),
        "sessions_with_heard": share((is_real & ~skipped).any(1)),
        "repeats": share(repeats[is_real]),
        "repeats_at_once": share(repeats_at_once[is_real]),
        "test_skipped": share(test.target_skipped.numpy()),
        "test_repeated": share(test.target_repeated.numpy()),
        # A session of the test days has no training prefix.
        "test_in_prefix": None if is_split_by_date else share((prefix.items.numpy() == targets[:, None]).any(1)),
        "test_cold": share(plays[targets] == 0),
        "val_cold": share(plays[val.targets.numpy()] == 0),
        "parts": [len(prefix.lengths), len(val.targets), len(test.targets)] if is_split_by_date else None,
        "no_anchor": share(~has_anchor(prefix)),
        "skipped_by_position": [share(skipped[:, t][is_real[:, t]]) for t in range(is_real.any(0).sum())],
        "skipped_by_context": {
            name: share(skipped[is_real][context_of_row == i]) for i, name in enumerate(context_names)
        },
        "items_in_two_sessions": int((in_sessions >= 2).sum()),
        "items_in_training": int((plays[1:] > 0).sum()),
        "top_items_share": float(np.sort(all_plays)[::-1][:TOP].sum() / n_rows),
        "popularity": popularity(all_plays),
        "features": {
            name: {"difference": difference, "known": share(~np.isnan(dataset.features[name][1:]))}
            for name, difference in feature_differences(dataset).items()
        },
        "contexts": {context_names[i]: int(by_context[i]) for i in np.argsort(-by_context, kind="stable")},
        "sessions_changing_context": int(changes_context.sum()),
        "first_date": str(min(dates)),
        "last_date": str(max(dates)),
        "sessions_over_several_dates": said["sessions_over_several_dates"],
        "duplicate_sessions": int(sequences.duplicated().sum()),
    }


def popularity(plays: Int[np.ndarray, " R"]) -> list[tuple[int, float]]:
    """What share of all plays the n most played items have, for n = 1, 2, 5, 10, ... and all."""
    upto = np.cumsum(np.sort(plays)[::-1]) / plays.sum()
    steps = [step * 10**power for power in range(len(str(len(plays)))) for step in (1, 2, 5)]
    return [(n, float(upto[n - 1])) for n in [*(n for n in steps if n < len(plays)), len(plays)]]


def has_anchor(prefix: Sessions) -> Bool[np.ndarray, " S"]:
    """Whether a training session has a position that the contrastive loss acts on, by its defaults (semantics: 5)."""
    found = []
    for rows in torch.arange(len(prefix.items)).split(AT_ONCE):
        some = prefix.of(rows)
        heard_at, is_anchor = next_positive(some.skipped, some.items != PADDING)
        negatives = first_occurrence(some.items, some.skipped)[:, None, :]  # (B, 1, T), for the positions of axis 1
        negatives = negatives & (some.items[:, None, :] != some.items[:, :, None])
        negatives &= some.items[:, None, :] != some.items.gather(1, heard_at)[:, :, None]
        found.append((is_anchor & negatives.any(-1)).any(1))
    return torch.cat(found).numpy()


def as_json(figures: Mapping[str, Any]) -> str:
    """The figures as JSON, with null where there was nothing to count."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return None if value != value else value

    return json.dumps(plain(figures), indent=2, ensure_ascii=False)


def share(flags: Bool[np.ndarray, " N"]) -> float:
    """How much of it is true; nan of nothing."""
    return float(flags.mean()) if flags.size else float("nan")


def repeated(
    items: Int[np.ndarray, "S T"], is_real: Bool[np.ndarray, "S T"]
) -> tuple[Bool[np.ndarray, "S T"], Bool[np.ndarray, "S T"]]:
    """Where an item was played before in its session, and where it was the one just before."""
    before = np.zeros_like(is_real)
    for t in range(1, items.shape[1]):
        before[:, t] = (items[:, :t] == items[:, t : t + 1]).any(1)
    at_once = np.zeros_like(is_real)
    at_once[:, 1:] = items[:, 1:] == items[:, :-1]
    return before & is_real, at_once & is_real


def render(figures: Mapping[str, Any]) -> str:
    """The figures as text, a line a figure."""
    lines = [
        f"dataset {figures['digest'][:12]}, prepared with "
        + ", ".join(f"{name} {value}" for name, value in figures["settings"].items()),
        "",
        f"{'':28}{'here':>12}{'the paper':>12}",
    ]
    for name, label in (("sessions", "sessions"), ("items", "items"), ("rows", "interactions")):
        lines.append(f"{label:28}{figures[name]:>12,}{PAPER[name]:>12}")
    lines.append(f"{'interactions skipped':28}{percent(figures['skipped']):>12}{PAPER['skipped']:>12}")
    lines += [
        "",
        f"read: {figures['rows_read']:,} rows, {figures['sessions_read']:,} sessions, {figures['sources']} files",
    ]
    lines += [f"dropped, {reason}: {n:,} sessions" for reason, n in figures["dropped"].items()]
    lines += [f"cut to their last {figures['settings']['max_length']} items: {figures['truncated']:,} sessions"]
    lines += ["", "length   sessions"]
    most = max(figures["lengths"].values())
    for length, n in figures["lengths"].items():
        lines.append(f"{length:>6} {n:>10,}  {'#' * round(40 * n / most)}".rstrip())
    lines += [
        "",
        "skips, share of interactions",
        *(
            f"  {name:26}{percent(figures[name]):>12}"
            for name in ("skip_1", "skip_2", "skip_3", "not_skipped", "no_flag")
        ),
        f"  {'flags not nested (rows)':26}{figures['not_nested']:>12,}",
        "skipped, by position from 1: " + " ".join(f"{100 * value:.0f}" for value in figures["skipped_by_position"]),
    ]
    for name, label in (
        ("skipped_after_skipped", "skipped after a skipped item"),
        ("skipped_after_heard", "skipped after a heard item"),
        ("sessions_with_skip", "sessions with a skip"),
        ("sessions_with_heard", "sessions with a heard item"),
        ("repeats", "repeats an item of the session"),
        ("repeats_at_once", "repeats the item just before"),
        ("test_skipped", "test targets skipped"),
        ("test_repeated", "test targets in their input"),
        ("test_in_prefix", "test targets in their training prefix"),
        ("val_cold", "validation targets never trained on"),
        ("test_cold", "test targets never trained on"),
        ("no_anchor", "training sessions with no anchor"),
        ("top_items_share", f"plays of the top {TOP} items"),
    ):
        lines.append(f"{label:42}{percent(figures[name]):>8}")
    if figures["parts"]:
        train, val, test = figures["parts"]
        lines.append(f"split by date: {train:,} sessions to train on, {val:,} for validation, {test:,} for test")
    lines += [
        f"items in two sessions or more: {figures['items_in_two_sessions']:,}; "
        f"in some training prefix: {figures['items_in_training']:,}",
        "",
        "plays of the most played items: "
        + ", ".join(f"{n:,}: {percent(value)}" for n, value in figures["popularity"] if str(n).strip("0") == "1"),
        "contexts, plays and share skipped: "
        + "; ".join(
            f"{name} {n:,} {percent(figures['skipped_by_context'][name])}" for name, n in figures["contexts"].items()
        ),
        *feature_lines(figures["features"]),
        f"sessions that change context: {figures['sessions_changing_context']:,}",
        f"dates of first rows: {figures['first_date']} to {figures['last_date']}; "
        f"sessions over several dates: {figures['sessions_over_several_dates']:,}",
        f"sessions that repeat another one's exact items: {figures['duplicate_sessions']:,}",
    ]
    return "\n".join(lines) + "\n"


def feature_lines(features: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A line a track feature; nothing where there are none."""
    if not features:
        return []
    lines = ["track features: known of, mean over skipped plays less heard ones (standard deviations)"]
    return lines + [f"  {name:40}{percent(f['known']):>8}{f['difference']:>+8.2f}" for name, f in features.items()]


def percent(value: float | None) -> str:
    """As 51.7%; a dash where there was nothing to count."""
    return "-" if value is None or value != value else f"{100 * value:.1f}%"
