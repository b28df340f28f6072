"""The planted world: it is what it says, takes the road of real logs, and is the same for the same seed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import skiprec.synthetic
from skiprec.errors import ConfigError, OutputError
from skiprec.prepare import prepare_logs
from skiprec.schema import LOG_COLUMNS
from skiprec.synthetic import CLUSTER_SIZE, N_SUCCESSORS, Plays, World, make_world, play, synthesize_logs

N_SESSIONS, N_ITEMS = 6000, 2000


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(N_ITEMS, generator())


@pytest.fixture(scope="module")
def plays(world) -> Plays:
    return play(world, N_SESSIONS, generator(1), skip_signal=1.0, succession=1.0)


def is_real(plays: Plays) -> np.ndarray:
    return np.arange(plays.items.shape[1]) < plays.lengths[:, None]


def skip_shares(plays: Plays) -> tuple[float, float, float, float]:
    """Of all rows, of last rows, after a skip, and after none; the last row left out of the latter two."""
    skipped, real = plays.skip_levels >= 2, is_real(plays)
    last = skipped[np.arange(len(skipped)), plays.lengths - 1]
    inner = np.arange(1, 20) < plays.lengths[:, None] - 1
    after = [skipped[:, 1:][inner & (skipped[:, :-1] == before)].mean() for before in (True, False)]
    return skipped[real].mean(), last.mean(), *after


def test_popularity_is_zipf_and_item_numbers_do_not_tell_it(world):
    ordered = np.sort(world.popularity)[::-1]
    assert world.popularity.sum() == pytest.approx(1)
    assert ordered[0] / ordered[9] == pytest.approx(10**0.95)
    assert abs(np.corrcoef(np.arange(N_ITEMS), world.popularity.argsort().argsort())[0, 1]) < 0.1


def test_successors_are_distinct_other_items_of_the_same_cluster(world):
    assert world.successors.shape == (N_ITEMS, N_SUCCESSORS)
    assert (world.cluster[world.successors] == world.cluster[:, None]).all()
    assert (world.successors != np.arange(N_ITEMS)[:, None]).all()
    assert all(len(set(row)) == N_SUCCESSORS for row in world.successors.tolist())
    assert world.successor_weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("skip_signal", [0.0, 1.0])
def test_skips_are_as_sticky_and_as_frequent_as_real_ones_whatever_their_signal(world, skip_signal):
    plays = play(world, N_SESSIONS, generator(1), skip_signal, succession=1.0)
    overall, last, after_skip, after_heard = skip_shares(plays)
    assert overall == pytest.approx(0.52, abs=0.015)
    assert last == pytest.approx(0.40, abs=0.02)
    assert after_skip == pytest.approx(0.75, abs=0.02)
    assert after_heard == pytest.approx(0.28, abs=0.02)


def test_levels_and_flags_have_the_shares_of_real_logs(plays):
    levels = plays.skip_levels[is_real(plays)]
    assert (levels >= 3).mean() == pytest.approx(0.42, abs=0.02)
    assert (levels >= 1).mean() == pytest.approx(0.65, abs=0.02)
    assert plays.no_flag[is_real(plays)].mean() == pytest.approx(0.02, abs=0.005)
    assert (levels[plays.no_flag[is_real(plays)]] == 0).all()


def test_skips_tell_strays_only_as_far_as_they_are_told_to(world):
    for skip_signal, low, high in ((0.0, -0.015, 0.015), (0.5, 0.12, 0.26), (1.0, 0.28, 0.48)):
        plays = play(world, N_SESSIONS, generator(2), skip_signal, succession=1.0)
        skipped, real = plays.skip_levels >= 2, is_real(plays)
        real[:, 0] = False  # its skip is drawn apart
        gap = skipped[real & plays.is_stray].mean() - skipped[real & ~plays.is_stray].mean()
        assert low < gap < high


def follows(world: World, plays: Plays) -> float:
    """Share of new plays that are a successor of the last item in taste, found by a loop over the sessions."""
    n_new = n_following = 0
    for items, strays, length in zip(plays.items.tolist(), plays.is_stray, plays.lengths, strict=True):
        anchor = items[0]
        for t in range(1, length):
            if items[t] not in items[:t]:
                n_new += 1
                n_following += items[t] in world.successors[anchor]
            anchor = anchor if strays[t] else items[t]
    return n_following / n_new


def repeats(plays: Plays) -> float:
    """Share of rows whose item was played before in the session."""
    sizes = [
        (length, len(set(items[:length]))) for items, length in zip(plays.items.tolist(), plays.lengths, strict=True)
    ]
    return 1 - sum(distinct for _, distinct in sizes) / plays.lengths.sum()


def test_the_session_follows_its_last_item_in_taste_and_replays_as_real_ones_do(world, plays):
    assert 0.56 < follows(world, plays) < 0.63
    assert 0.10 < repeats(plays) < 0.14


def test_with_succession_0_the_past_tells_nothing_of_what_comes_next(world):
    """What would still follow by chance: pairs of a wrong anchor that share a popular successor."""
    shuffled = play(world, N_SESSIONS, generator(1), skip_signal=1.0, succession=0.0)
    assert follows(world, shuffled) < 0.06
    assert repeats(shuffled) < 0.02


def test_an_oracle_is_far_above_popularity_which_is_far_above_chance(world, plays):
    """HR@10 of the last item among 1,000 others, the chain of successors known."""
    rng = generator(3)
    rows = np.arange(N_SESSIONS)
    target = plays.items[rows, plays.lengths - 1]
    counts = np.bincount(plays.items[np.arange(20) < plays.lengths[:, None] - 2], minlength=N_ITEMS).astype(float)
    hits = {"popular": 0, "session": 0, "oracle": 0}
    for s in rows[:2000]:
        played = plays.items[s, : plays.lengths[s] - 1]
        outside = np.setdiff1d(np.arange(N_ITEMS), plays.items[s, : plays.lengths[s]])
        candidates = np.concatenate([[target[s]], rng.choice(outside, 1000, replace=False)])
        anchor = played[~plays.is_stray[s, : len(played)]][-1]
        popular = counts[candidates]
        session = popular + 1e6 * np.isin(candidates, played)
        oracle = session + 1e6 * np.isin(candidates, world.successors[anchor])
        for name, scores in (("popular", popular), ("session", session), ("oracle", oracle)):
            hits[name] += 1 + (scores[1:] > scores[0]).sum() + (scores[1:] == scores[0]).sum() / 2 <= 10
    rate = {name: n / 2000 for name, n in hits.items()}
    assert 0.15 < rate["popular"] < 0.3
    assert rate["popular"] + 0.05 < rate["session"] < rate["popular"] + 0.15
    assert rate["oracle"] > 2 * rate["popular"]
    assert rate["oracle"] > 0.6


def test_lengths_are_10_to_20_and_half_are_20(plays):
    assert set(plays.lengths.tolist()) == set(range(10, 21))
    assert (plays.lengths == 20).mean() == pytest.approx(3030 / 5956, abs=0.02)


def test_the_files_are_mssd_logs_that_prepare_keeps_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(skiprec.synthetic, "SESSIONS_PER_FILE", 120)
    paths = synthesize_logs(tmp_path / "logs", sessions=300, items=400, seed=5, progress=False)
    assert [p.name for p in paths] == [f"log_0_20180715_{i:012}.csv.gz" for i in range(3)]
    assert sorted((tmp_path / "logs").iterdir()) == paths
    log = pd.concat([pd.read_csv(path) for path in paths])
    assert tuple(log.columns) == LOG_COLUMNS
    assert not log.isna().any().any()
    assert log[["skip_1", "skip_2", "skip_3", "not_skipped", "premium"]].dtypes.eq(bool).all()
    assert log.session_id.str.fullmatch(r"0_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").all()
    assert log.track_id_clean.str.fullmatch(r"t_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").all()
    assert log.hour_of_day.between(0, 23).all()
    manifest = prepare_logs(paths, tmp_path / "data", progress=False)
    assert manifest.dropped == {"incomplete": 0, "too_short": 0, "no_skips": 0}
    assert manifest.counts["sessions"] == log.session_id.nunique() == 300
    assert manifest.counts["rows"] == len(log)
    assert manifest.counts["items"] == log.track_id_clean.nunique()
    assert manifest.counts["not_nested"] == 0
    assert manifest.counts["skipped"] == log.skip_2.sum()


def content(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        synthesize_logs(tmp_path / name, sessions=50, items=100, seed=seed, progress=False)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert content(tmp_path / "a") != content(tmp_path / "c")
    assert content(tmp_path / "a")[0][3:8] == bytes(5)  # gzip notes no name and no time (RFC 1952, 2.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sessions": 0}, "sessions is 0, expected 1 or more"),
        ({"items": 39}, "items is 39, expected 40 or more: two tastes of 20 items"),
        ({"seed": -1}, "seed is -1, expected 0 or more"),
        ({"skip_signal": 1.5}, "skip_signal is 1.5, expected 0 to 1"),
        ({"succession": -0.1}, "succession is -0.1, expected 0 to 1"),
        ({"skip_signal": float("nan")}, "skip_signal is nan, expected 0 to 1"),
    ],
)
def test_arguments_out_of_range_are_refused_and_nothing_is_written(tmp_path, change, message):
    with pytest.raises(ConfigError) as caught:
        synthesize_logs(tmp_path / "logs", **({"sessions": 5, "items": 50, "seed": 0, "progress": False} | change))
    assert str(caught.value) == message
    assert list(tmp_path.iterdir()) == []


def test_the_smallest_world_can_be_made(tmp_path):
    assert len(synthesize_logs(tmp_path / "logs", sessions=1, items=2 * CLUSTER_SIZE, seed=0, progress=False)) == 1


def test_an_out_that_exists_is_refused_and_stays_as_it_was(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "mine").write_text("mine")
    with pytest.raises(OutputError, match="logs already exists"):
        synthesize_logs(tmp_path / "logs", sessions=5, items=50, seed=0, progress=False)
    assert content(tmp_path / "logs") == [b"mine"]


FULL_DISK = """
import pathlib, resource, sys
import skiprec.synthetic
from skiprec.errors import OutputError
skiprec.synthetic.SESSIONS_PER_FILE = 100
out = pathlib.Path(sys.argv[1])
for size in map(int, sys.argv[2:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        skiprec.synthetic.synthesize_logs(out, sessions=250, items=200, seed=0, progress=False)
        print(size, "written")
    except OutputError as error:
        print(size, error)
    print(*sorted(p.name for p in out.parent.iterdir()), flush=True)
"""


def test_a_full_disk_is_an_output_error_at_ten_sizes_and_leaves_nothing(tmp_path):
    """A file-size limit stands for the disk; the last size is enough, or the others would prove nothing."""
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(skiprec.synthetic, "SESSIONS_PER_FILE", 100)
        paths = synthesize_logs(tmp_path / "measured" / "logs", sessions=250, items=200, seed=0, progress=False)
    most = max(path.stat().st_size for path in paths)
    limits = [0, 1, 10, 100, 1000, 4096, most // 4, most // 2, most - 100, most - 1]
    (tmp_path / "here").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path / "here" / "logs", *map(str, [*limits, most])],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said, left = done.stdout.splitlines()[::2], done.stdout.splitlines()[1::2]
    for size, line in zip(limits, said[:-1], strict=True):
        assert line.startswith(
            f"{size} {tmp_path}/here/logs: cannot be written (File too large); nothing was left there"
        )
    assert left[:-1] == [""] * len(limits)
    assert (said[-1], left[-1]) == (f"{most} written", "logs")
