"""The benchmark runs, reports what it saw, and reports what failed. Not one speed is asserted."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BASELINES = ("random", "most popular", "session-popular", "Markov", "item-kNN", "session-kNN")
ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "bench.py"


def bench(tmp_path, *arguments):
    """What it printed and what it wrote."""
    out = tmp_path / "bench.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--threads", "1", "--out", str(out), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(out.read_text())


def test_project_peer_and_floor_are_measured(tmp_path):
    """Every row has positive figures, the floor's parts add up, and ratios are what the rows say."""
    printed, result = bench(tmp_path, "--sizes", "2000", "--only", "skiprec,plain,floor")
    assert result["about"]["machine"]["cores"] == os.cpu_count()
    assert len(result["about"]["commit"]) == 40
    rows = {(row["subject"], row["measure"], row["mode"]): row for row in result["rows"]}
    measures = [("train", "session"), ("train", "shared"), ("evaluate", "candidates")]
    floors = [("floor", "bound", "session"), ("floor", "bound", "shared")]
    assert set(rows) == {(subject, *measure) for subject in ("skiprec", "plain") for measure in measures} | set(floors)
    for row in rows.values():
        assert row["items"] == 2000
        assert min(row[name] for name in ("sessions_per_second", "step_seconds", "peak_mib")) > 0
        assert row["versions"]["torch"]
    for key in floors:
        parts = [rows[key][f"{part}_seconds"] for part in ("encoder", "loss", "memory")]
        assert rows[key]["step_seconds"] == pytest.approx(sum(parts))
    plain, own = (rows[subject, "train", "session"]["sessions_per_second"] for subject in ("plain", "skiprec"))
    assert rows["plain", "train", "session"]["ratio"] == pytest.approx(own / plain)
    assert "plain PyTorch, fused Adam" in printed
    assert {goal["met"] for goal in result["goals"]} == {None}  # none is about 2,000 items


def test_the_floor_counts_what_a_step_multiplies_and_touches(tmp_path):
    """By hand: 128 sessions, 20 positions, width 128, 1,000 negatives, two blocks and a head."""
    _, result = bench(tmp_path, "--sizes", "1000000", "--only", "floor")
    session, shared = result["rows"]
    assert session["multiply_adds"]["loss"] == 3 * 2560 * 1000 * 128
    block = (
        4 * 128**2 + 2 * 128**2 + 2 * 128 * 10.5
    )  # projections, feed-forward, attention to 10.5 positions on average
    assert session["multiply_adds"]["encoder"] == 3 * 2560 * (2 * block + 128**2)
    # Of a million items, n random ones are so many different ones:
    for row, n in ((session, 128 * 1021), (shared, 128 * 21 + 1000)):
        assert row["touched_rows"] == pytest.approx(1e6 * (1 - math.exp(-n / 1e6)), rel=0.01)
        assert row["bytes"] == row["touched_rows"] * 128 * 4 * 8
        assert row["memory_seconds"] == pytest.approx(row["bytes"] / (row["copy_gb_per_second"] * 1e9))


def test_all_baselines_are_timed(tmp_path):
    """Each one's seconds, which with the building make up the row's; 900 sessions of 2,000 items."""
    _, result = bench(tmp_path, "--sizes", "2000", "--only", "baselines")
    (row,) = result["rows"]
    assert set(row["seconds_each"]) == {"building all", *BASELINES}
    assert row["seconds"] == pytest.approx(sum(clock for clock, _ in row["seconds_each"].values()))
    assert row["sessions_per_second"] == pytest.approx(900 / row["seconds"])


def test_a_subject_that_fails_is_a_row_with_its_last_line(tmp_path):
    """Ten items cannot be told from a session of 23: the project refuses, and the others are measured all the same."""
    printed, result = bench(tmp_path, "--sizes", "10", "--only", "skiprec,floor")
    failed = [row for row in result["rows"] if row["subject"] == "skiprec"]
    assert len(failed) == 3
    assert all("ConfigError" in row["error"] and "expected more items" in row["error"] for row in failed)
    assert not any("error" in row for row in result["rows"] if row["subject"] == "floor")
    assert "FAILED: " in printed


def test_an_unknown_subject_is_refused(tmp_path):
    """With what there is to choose from."""
    done = subprocess.run([sys.executable, str(SCRIPT), "--only", "plan"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--only plan: unknown, expected one of skiprec," in done.stderr
