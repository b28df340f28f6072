"""Logs in MSSD's format from a world whose answers are known: what a model can learn in it, and whether skips help.

The world. Items have Zipf popularity and one of several taste clusters each; an item has a few successors in its own
cluster. A session has a taste. Each play is a replay of an earlier track, or the successor of the last item played in
the session's taste (the chain goes on past strays), or a stray, drawn by popularity from the whole catalogue. Skips are
sticky, and likelier at strays than in taste. So the next item can be told from the last one in taste, and a skip tells
that an item was a stray.
"""

import datetime
import gzip
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from jaxtyping import Bool, Float, Int8, Int64
from tqdm import tqdm

from skiprec import files
from skiprec.errors import ConfigError
from skiprec.schema import LOG_COLUMNS

# S sessions, T = 20 positions (padding on the right), V items, F successors an item, N rows.

LENGTHS = np.arange(10, 21)
LENGTH_WEIGHTS = np.array([500, 430, 386, 338, 270, 256, 199, 183, 178, 186, 3030])
"""Sessions of 10, 11, ..., 20 items, as counted in 5,956 real ones."""

ZIPF_EXPONENT = 0.95
"""Popularity falls as rank to the minus this. The plays fall a little less steeply, as no successor is played twice."""
CLUSTER_SIZE = 20
N_SUCCESSORS = 4
P_REPLAY = 0.12
P_SUCCESSOR = 0.65
"""Of plays that are no replay: in taste. In effect near .6, as a chain may have no successor left to play."""

P_SKIP_FIRST = 0.52
P_SKIP_AFTER_SKIP, P_SKIP_AFTER_HEARD = 0.75, 0.28
P_SKIP_LAST_AFTER_SKIP, P_SKIP_LAST_AFTER_HEARD = 0.60, 0.18
"""A session tends to end with a track that was heard."""
SKIP_SHIFT = 0.36
"""How much likelier a skip is at a stray than in taste, with skip_signal 1."""
P_VERY_BRIEFLY = 0.81
"""skip_1, given skip_2."""
P_MOSTLY, P_NO_FLAG = 0.27, 0.04
"""skip_3 alone, or no flag, given that skip_2 is false."""

CONTEXTS = ("user_collection", "catalog", "editorial_playlist", "radio", "personalized_playlist", "charts")
CONTEXT_WEIGHTS = np.array([0.405, 0.227, 0.208, 0.126, 0.019, 0.015])
LAST_DAY = datetime.date(2018, 7, 15)
SESSIONS_PER_FILE = 50_000


@dataclass(frozen=True)
class World:
    """The catalogue: what the rows of the logs are drawn from, and what an ideal model would know."""

    popularity: Float[np.ndarray, " V"]
    """Sums to 1."""
    cluster: Int64[np.ndarray, " V"]
    successors: Int64[np.ndarray, "V F"]
    """Items of the same cluster, the likeliest first, never the item itself."""
    successor_weights: Float[np.ndarray, " F"]
    """Sums to 1."""


@dataclass(frozen=True)
class Plays:
    """Sessions of a world, before they become rows."""

    items: Int64[np.ndarray, "S T"]
    """Numbers from 0; what stands behind a session's end means nothing."""
    lengths: Int64[np.ndarray, " S"]
    is_stray: Bool[np.ndarray, "S T"]
    """The item is none that the chain of successors led to."""
    skip_levels: Int8[np.ndarray, "S T"]
    no_flag: Bool[np.ndarray, "S T"]
    """Level 0 without not_skipped."""


def synthesize_logs(
    out: str | Path,
    *,
    sessions: int,
    items: int,
    seed: int,
    skip_signal: float = 1.0,
    succession: float = 1.0,
    progress: bool = True,
) -> list[Path]:
    """Write a new folder of MSSD-format .csv.gz logs. The same arguments give the same bytes.

    Args:
        out: The folder to make.
        sessions: How many sessions, of 10 to 20 items.
        items: Size of the catalogue; rare items may not occur.
        seed: Of everything that is drawn.
        skip_signal: How much skips depend on taste. With 0 they say nothing about what comes next.
        succession: Share of successors and replays that follow the session's own past. The rest follow that of a
            random other session: with 0, popularity is all that can be learnt.
        progress: Show a bar, where there is a terminal.

    Returns:
        The files, in `out`.

    Raises:
        ConfigError: If an argument is out of range.
        OutputError: If `out` exists or cannot be written.
    """
    check_arguments(sessions, items, seed, skip_signal, succession)
    out = Path(out)
    files.refuse_existing(out)
    rng = np.random.Generator(np.random.PCG64(seed))
    world = make_world(items, rng)
    track_ids = pa.array([f"t_{uuid}" for uuid in uuids(items, rng)])
    names = []
    with (
        files.new_folder(out) as folder,
        tqdm(total=sessions, desc="writing logs", unit=" sessions", disable=None if progress else True) as bar,
    ):
        for first in range(0, sessions, SESSIONS_PER_FILE):
            n = min(SESSIONS_PER_FILE, sessions - first)
            names.append(f"log_0_{LAST_DAY:%Y%m%d}_{len(names):012d}.csv.gz")
            table = as_rows(play(world, n, rng, skip_signal, succession), first, track_ids, rng)
            write_log(folder / names[-1], table)
            bar.update(n)
    return [out / name for name in names]


def check_arguments(sessions: int, items: int, seed: int, skip_signal: float, succession: float) -> None:
    """Refuse what no world can be made from."""
    if sessions < 1:
        raise ConfigError(f"sessions is {sessions}, expected 1 or more")
    if items < 2 * CLUSTER_SIZE:
        raise ConfigError(f"items is {items}, expected {2 * CLUSTER_SIZE} or more: two tastes of {CLUSTER_SIZE} items")
    if seed < 0:
        raise ConfigError(f"seed is {seed}, expected 0 or more")
    for name, value in (("skip_signal", skip_signal), ("succession", succession)):
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} is {value}, expected 0 to 1")


def make_world(n_items: int, rng: np.random.Generator) -> World:
    """Popularity, clusters and successors. Item numbers say nothing about either."""
    popularity = rng.permutation((1.0 + np.arange(n_items)) ** -ZIPF_EXPONENT)
    popularity /= popularity.sum()
    cluster = rng.permutation(np.arange(n_items) % (n_items // CLUSTER_SIZE))
    successors = np.empty((n_items, N_SUCCESSORS), dtype=np.int64)
    for number in range(cluster.max() + 1):
        members = np.flatnonzero(cluster == number)
        # Gumbel noise on log weights, largest first: draws in proportion to popularity without replacement, so that
        # following successors leaves the catalogue's popularity roughly what it is.
        keys = np.log(popularity[members]) + rng.gumbel(size=(len(members), len(members)))
        np.fill_diagonal(keys, -np.inf)
        successors[members] = members[np.argsort(-keys, axis=1)[:, :N_SUCCESSORS]]
    weights = 1.0 / (1.0 + np.arange(N_SUCCESSORS))
    return World(popularity, cluster, successors, weights / weights.sum())


def play(world: World, n_sessions: int, rng: np.random.Generator, skip_signal: float, succession: float) -> Plays:
    """Draw sessions: position after position, for all sessions at once."""
    n_positions = int(LENGTHS[-1])
    lengths = rng.choice(LENGTHS, size=n_sessions, p=LENGTH_WEIGHTS / LENGTH_WEIGHTS.sum())
    by_popularity = np.cumsum(world.popularity)
    rows = np.arange(n_sessions)
    items = np.full((n_sessions, n_positions), -1, dtype=np.int64)
    is_stray = np.zeros((n_sessions, n_positions), dtype=bool)
    # The first item is the session's taste: drawing it by popularity gives each taste the weight of its items.
    items[:, 0] = draw(by_popularity, n_sessions, rng)
    anchor = items[:, 0].copy()  # the last item in taste

    for t in range(1, n_positions):
        source = np.where(rng.random(n_sessions) < succession, rows, rng.permutation(n_sessions))
        # A successor that was played is passed over, and a stray drawn once more, so that replays are as rare as said.
        candidates = world.successors[anchor[source]]  # (S, F)
        weights = world.successor_weights * ~is_played(candidates, items[:, :t])
        pick = (np.cumsum(weights, axis=1) <= (rng.random(n_sessions) * weights.sum(1))[:, None]).sum(1)
        successor = candidates[rows, np.minimum(pick, N_SUCCESSORS - 1)]
        strays = np.stack([draw(by_popularity, n_sessions, rng), draw(by_popularity, n_sessions, rng)], axis=1)
        stray = np.where(is_played(strays, items[:, :t])[:, 0], strays[:, 1], strays[:, 0])
        earlier = rng.integers(0, t, n_sessions)
        replay = items[source, earlier]

        # Another session's track that was played here too would be a replay after all.
        is_replay = (rng.random(n_sessions) < P_REPLAY) & (
            (source == rows) | ~is_played(replay[:, None], items[:, :t])[:, 0]
        )
        is_successor = (rng.random(n_sessions) < P_SUCCESSOR) & (weights.sum(1) > 0)
        items[:, t] = np.where(is_replay, replay, np.where(is_successor, successor, stray))
        is_stray[:, t] = np.where(is_replay, is_stray[source, earlier], ~is_successor)
        anchor = np.where(is_stray[:, t], anchor, items[:, t])

    is_skipped = draw_skips(is_stray, lengths, rng, skip_signal)
    chance = rng.random((2, n_sessions, n_positions))
    skip_levels = np.where(is_skipped, 2 + (chance[0] < P_VERY_BRIEFLY), chance[0] < P_MOSTLY).astype(np.int8)
    no_flag = (skip_levels == 0) & (chance[1] < P_NO_FLAG / (1 - P_MOSTLY))
    return Plays(items, lengths, is_stray, skip_levels, no_flag)


def is_played(candidates: Int64[np.ndarray, "S C"], played: Int64[np.ndarray, "S t"]) -> Bool[np.ndarray, "S C"]:
    """Which of a session's C candidates it has played."""
    return (candidates[:, :, None] == played[:, None, :]).any(-1)


def draw(cumulative: Float[np.ndarray, " V"], n: int, rng: np.random.Generator) -> Int64[np.ndarray, " n"]:
    """Items in proportion to the steps of their cumulative weights."""
    return np.minimum(np.searchsorted(cumulative, rng.random(n) * cumulative[-1], side="right"), len(cumulative) - 1)


def draw_skips(
    is_stray: Bool[np.ndarray, "S T"], lengths: Int64[np.ndarray, " S"], rng: np.random.Generator, skip_signal: float
) -> Bool[np.ndarray, "S T"]:
    """A sticky chain along each session, its probabilities shifted up at strays and down in taste."""
    # Shifts average to nothing at every position, so that skip_signal does not change how much is skipped.
    shift = skip_signal * SKIP_SHIFT * (is_stray - is_stray.mean(axis=0))
    chance = rng.random(is_stray.shape)
    is_skipped = np.zeros(is_stray.shape, dtype=bool)
    is_skipped[:, 0] = chance[:, 0] < P_SKIP_FIRST
    for t in range(1, is_stray.shape[1]):
        before = is_skipped[:, t - 1]
        middle = np.where(before, P_SKIP_AFTER_SKIP, P_SKIP_AFTER_HEARD)
        last = np.where(before, P_SKIP_LAST_AFTER_SKIP, P_SKIP_LAST_AFTER_HEARD)
        is_skipped[:, t] = chance[:, t] < np.where(lengths == t + 1, last, middle) + shift[:, t]
    return is_skipped


def as_rows(plays: Plays, first_session: int, track_ids: pa.Array, rng: np.random.Generator) -> pa.Table:
    """The log's columns. Those that skiprec does not read are plausible, and no more."""
    n_sessions, n_positions = plays.items.shape
    is_real = np.arange(n_positions) < plays.lengths[:, None]  # (S, T); boolean indexing by it gives rows
    session, at = np.nonzero(is_real)
    n = len(session)
    level, no_flag = plays.skip_levels[is_real], plays.no_flag[is_real]

    context = rng.choice(len(CONTEXTS), size=(2, n_sessions), p=CONTEXT_WEIGHTS)
    # A quarter of the sessions leave their first context somewhere.
    changes_at = np.where(rng.random(n_sessions) < 0.25, rng.integers(1, n_positions, n_sessions), n_positions)
    context_switch = at == changes_at[session]
    context_now = np.where(at < changes_at[session], context[0][session], context[1][session])

    hours = rng.integers(5, 24, n_sessions)[:, None] + np.cumsum(rng.random(is_real.shape) < 0.02, axis=1)
    days_ago = rng.choice([0, 1, 2, 3, 30], size=n_sessions, p=[0.72, 0.27, 0.005, 0.003, 0.002])
    day = (hours // 24 - days_ago[:, None] - 1)[is_real]
    distinct_days, day_index = np.unique(day, return_inverse=True)
    dates = [str(LAST_DAY + datetime.timedelta(days=int(n))) for n in distinct_days]

    pause = rng.choice(3, size=n, p=[0.77, 0.06, 0.17])
    short_pause, long_pause = pause == 1, pause == 2
    reasons = ("fwdbtn", "trackdone", "endplay", "backbtn", "clickrow", "appload")
    end = np.where(level >= 2, rng.choice([0, 3], size=n, p=[0.9, 0.1]), 1)
    end[at + 1 == plays.lengths[session]] = 2
    start = np.where(np.roll(end, 1) == 2, rng.choice([4, 5], size=n, p=[0.9, 0.1]), np.roll(end, 1))

    columns = {
        "session_id": pa.array(
            [f"0_{first_session + i:08x}{uuid[8:]}" for i, uuid in enumerate(uuids(n_sessions, rng))]
        ).take(pa.array(session)),
        "session_position": pa.array(at + 1),
        "session_length": pa.array(plays.lengths[session]),
        "track_id_clean": track_ids.take(pa.array(plays.items[is_real])),
        "skip_1": flags(level >= 3),
        "skip_2": flags(level >= 2),
        "skip_3": flags(level >= 1),
        "not_skipped": flags((level == 0) & ~no_flag),
        "context_switch": pa.array(context_switch.astype(np.int8)),
        "no_pause_before_play": pa.array((pause == 0).astype(np.int8)),
        "short_pause_before_play": pa.array(short_pause.astype(np.int8)),
        "long_pause_before_play": pa.array(long_pause.astype(np.int8)),
        "hist_user_behavior_n_seekfwd": pa.array(rng.poisson(0.04, n)),
        "hist_user_behavior_n_seekback": pa.array(rng.poisson(0.05, n)),
        "hist_user_behavior_is_shuffle": flags((rng.random(n_sessions) < 0.31)[session]),
        "hour_of_day": pa.array(hours[is_real] % 24),
        "date": pa.array(dates).take(pa.array(day_index)),
        "premium": flags((rng.random(n_sessions) < 0.81)[session]),
        "context_type": pa.array(CONTEXTS).take(pa.array(context_now)),
        "hist_user_behavior_reason_start": pa.array(reasons).take(pa.array(start)),
        "hist_user_behavior_reason_end": pa.array(reasons).take(pa.array(end)),
    }
    return pa.table(columns).select(list(LOG_COLUMNS))


def flags(values: Bool[np.ndarray, " N"]) -> pa.Array:
    """As MSSD writes them: True and False, where pyarrow would write true and false."""
    return pa.array(["False", "True"]).take(pa.array(values.astype(np.int64)))


def uuids(n: int, rng: np.random.Generator) -> list[str]:
    """Random ids in the form of UUIDs."""
    text = rng.bytes(16 * n).hex()
    parts = (text[i : i + 32] for i in range(0, 32 * n, 32))
    return [f"{p[:8]}-{p[8:12]}-{p[12:16]}-{p[16:20]}-{p[20:]}" for p in parts]


def write_log(path: Path, table: pa.Table) -> None:
    """CSV in gzip, without the time and name that gzip would note: they would make each file differ."""
    text = io.BytesIO()
    options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="none")
    pyarrow.csv.write_csv(table, text, options)
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", compresslevel=4, fileobj=raw, mtime=0) as file:
        file.write((",".join(LOG_COLUMNS) + "\n").encode())
        file.write(text.getbuffer())
