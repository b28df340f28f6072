"""How often the intervals and verdicts of study/statistics.py are right, and how often the naive way finds what is not.

    python scripts/calibrate.py [--keep FOLDER] [--studies 2000]
    python scripts/calibrate.py --real-studies 40

The first trains 24 seeds of two arms on synthetic logs, short and long, and takes their hits, by seed and session, as a
population whose truth is known by counting. Simulated studies draw seeds and sessions from it, each with replacement:
nothing in that knows the model behind the intervals. --keep holds the hits in a folder, and uses those that it has.

The second runs whole small studies on logs whose skips mean nothing: cells chosen by validation, paired fresh seeds,
test, verdict. Both print Markdown.
"""

import argparse
import dataclasses
import itertools
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int8
from scipy import stats
from tqdm import tqdm

from skiprec.config import from_flat
from skiprec.dataset import Dataset, load_dataset
from skiprec.evaluation import Evaluator
from skiprec.prepare import prepare_logs
from skiprec.synthetic import synthesize_logs
from skiprec.trainer import SELECTED_BY, Trainer
from study.statistics import Effect, difference, holm, power, verdict

# P seeds and S sessions of a population, K and n of a study; C cells of an arm, R replicates of a bootstrap.

SMALL = {"dim": 16, "n_layers": 1, "n_heads": 2, "feed_forward": 16, "n_negatives": 50, "learning_rate": 0.01}
"""A model that trains in seconds."""
POPULATION_SEEDS = 24
ARMS = {"S-": {"alpha": 0.0}, "S+": {"alpha": 0.5, "context": "item"}}
STAGES = {"short": 3, "long": 8}
"""Epochs: hardly begun, and still rising. Seeds differ after either, in their own ways."""
K_HIT = 10
"""A target among the first ten is a hit."""
SIZES = ((5, 100), (5, 1_000), (5, 10_000), (10, 1_000))
"""Seeds and sessions of the simulated studies: with more sessions, seeds make up more of the noise."""
PLANTED = 2.0
"""In standard errors."""
REPLICATES = 400
NAIVE_CELLS = ((4, 4), (20, 4))
"""Of the arm that is hoped for and of the other one; the paper has 64 and 4."""

Hits = Bool[np.ndarray, "P S"]


# ---- populations ----


def train_population(folder: Path) -> dict[str, Hits]:
    """Hits of every seed and session, by "arm/stage/split"; arms are paired by seed."""
    dataset = synthetic_dataset(folder, sessions=2_000, items=1_000, seed=3)
    evaluators = {split: Evaluator(dataset, split) for split in ("val", "test")}
    found: dict[str, list[Bool[np.ndarray, " S"]]] = {}
    last = max(STAGES.values())
    todo = list(itertools.product(range(1, POPULATION_SEEDS + 1), ARMS.items()))
    for seed, (arm, settings) in tqdm(todo, desc="training", unit=" runs", disable=None):
        config = from_flat({**SMALL, **settings, "seed": seed, "max_epochs": last, "patience": last - 1})
        trainer = Trainer(dataset, config, evaluator=evaluators["val"], show_progress=False)
        for result in trainer.epochs():
            for stage, split in itertools.product(STAGES, evaluators):
                if result.epoch == STAGES[stage]:
                    found.setdefault(f"{arm}/{stage}/{split}", []).append(hits_of(trainer, evaluators[split]))
    return {name: np.stack(rows) for name, rows in found.items()}


def synthetic_dataset(folder: Path, *, sessions: int, items: int, seed: int, skip_signal: float = 1.0) -> Dataset:
    """Synthetic logs, prepared, in a new folder."""
    synthesize_logs(folder / "logs", sessions=sessions, items=items, seed=seed, skip_signal=skip_signal, progress=False)
    prepare_logs([folder / "logs"], folder / "data", progress=False)
    return load_dataset(folder / "data")


def hits_of(trainer: Trainer, evaluator: Evaluator) -> Bool[np.ndarray, " S"]:
    """Which targets the model as it is has among the first ten of their candidates."""
    _, ranks = trainer.measure(evaluator)
    return (ranks["sampled"] <= K_HIT).numpy()


def load_population(keep: Path | None) -> dict[str, Hits]:
    """The hits of a folder, or new ones, put there."""
    file = keep / "hits.npz" if keep else None
    if file and file.exists():
        with np.load(file) as stored:
            return dict(stored)
    with tempfile.TemporaryDirectory() as folder:
        population = train_population(Path(folder))
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(file, **population)
    return population


# ---- what a study would see ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """Two arms whose true difference is known by counting, and how studies draw from them."""

    name: str
    ours: Hits
    other: Hits
    is_paired: bool
    """Seeds are drawn in pairs. Else each arm's apart: so they can be of the same runs, and differ in nothing."""

    @property
    def truth(self) -> float:
        """The true difference; exactly 0 where both hit equally often."""
        return (int(self.ours.sum()) - int(self.other.sum())) / self.ours.size

    def noise(self) -> dict[str, float]:
        """Standard deviations as `power` takes them: those of the population, not estimates."""
        both = [self.ours.astype(float) - self.other] if self.is_paired else [self.ours.astype(float), self.other]
        parts = np.sum([components(values) for values in both], axis=0)
        if not self.is_paired:
            parts[1] = (self.ours.mean(0) - self.other.mean(0)).var()
        return dict(zip(("seed_sd", "session_sd", "residual_sd"), np.sqrt(parts).tolist(), strict=True))

    def draw(self, K: int, n: int, rng: np.random.Generator) -> tuple[Bool[np.ndarray, "K n"], Bool[np.ndarray, "K n"]]:
        """A study's hits: seeds and sessions, both with replacement."""
        P, S = self.ours.shape
        seeds = rng.integers(P, size=K)
        others = seeds if self.is_paired else rng.integers(P, size=K)
        sessions = rng.integers(S, size=n)
        return self.ours[seeds[:, None], sessions], self.other[others[:, None], sessions]


def components(values: Float[np.ndarray, "P S"]) -> tuple[float, float, float]:
    """Variances of rows, of columns and of what is left in a whole population."""
    rows, columns = values.mean(1), values.mean(0)
    return rows.var(), columns.var(), (values - rows[:, None] - columns).var()


def standard_error(noise: Mapping[str, float], K: int, n: int) -> float:
    """True standard deviation of the estimate of studies with K seeds and n sessions."""
    by_seeds = noise["seed_sd"] ** 2 + noise["residual_sd"] ** 2 / n
    return math.sqrt(by_seeds / K + noise["session_sd"] ** 2 / n)


def turn_on(hits: Hits, n: int, rng: np.random.Generator) -> Hits:
    """The same with n more hits, at random misses: the mean rises by n / hits.size, exactly."""
    misses = np.flatnonzero(~hits)
    changed = hits.copy().ravel()
    changed[rng.choice(misses, n, replace=False)] = True
    return changed.reshape(hits.shape)


def populations(hits: Mapping[str, Hits], stage: str, rng: np.random.Generator) -> list[Population]:
    """Two whose true difference is 0: one arm twice, and two arms of which the worse is helped up to the other."""
    plus, minus = hits[f"S+/{stage}/test"], hits[f"S-/{stage}/test"]
    gap = int(plus.sum()) - int(minus.sum())
    if gap < 0:
        plus = turn_on(plus, -gap, rng)
    else:
        minus = turn_on(minus, gap, rng)
    own = hits[f"S+/{stage}/test"]
    return [
        Population(name=f"{stage}: one arm twice", ours=own, other=own, is_paired=False),
        Population(name=f"{stage}: two arms", ours=plus, other=minus, is_paired=True),
    ]


def planted(population: Population, K: int, n: int, rng: np.random.Generator) -> Population:
    """The same with an effect of about PLANTED standard errors of such studies."""
    more = round(PLANTED * standard_error(population.noise(), K, n) * population.ours.size)
    return dataclasses.replace(population, ours=turn_on(population.ours, more, rng))


# ---- ways to an interval ----

Interval = tuple[float, float]
Differences = Int8[np.ndarray, "K n"]


def patterns(D: Differences) -> tuple[Float[np.ndarray, "K m"], Int[np.ndarray, " m"]]:
    """The distinct columns, and how often each occurs: bytes are compared, so there may be any number of seeds."""
    columns = np.ascontiguousarray(D.T).view(np.dtype((np.void, len(D)))).ravel()
    _, first, counts = np.unique(columns, return_index=True, return_counts=True)
    return D[:, first].astype(float), counts


@dataclass(frozen=True, slots=True)
class Resampled:
    """Means of bootstrap replicates that draw seeds and sessions, and their standard errors."""

    means: Float[np.ndarray, " R"]
    errors: Float[np.ndarray, " R"]


def resample(D: Differences, R: int, rng: np.random.Generator) -> Resampled:
    """Replicates of a study. Sessions are drawn as counts of patterns."""
    values, counts = patterns(D)
    K, n = D.shape
    seeds = rng.multinomial(K, np.full(K, 1 / K), size=R)  # (R, K)
    sessions = rng.multinomial(n, counts / n, size=R)  # (R, m)
    by_seed = sessions @ values.T / n  # (R, K)
    by_session = seeds @ values / K  # (R, m)
    means = (seeds * by_seed).sum(1) / K
    of_seeds = n * (seeds * (by_seed - means[:, None]) ** 2).sum(1)
    of_sessions = K * (sessions * (by_session - means[:, None]) ** 2).sum(1)
    total = ((sessions @ np.square(values).T) * seeds).sum(1) - K * n * means**2
    a, b = of_seeds / (K - 1), of_sessions / (n - 1)
    e = (total - of_seeds - of_sessions) / ((K - 1) * (n - 1))
    return Resampled(means, np.sqrt(np.maximum.reduce([a + b - e, a, b, e]) / (K * n)))


def percentile(resampled: Resampled) -> Interval:
    """The plain bootstrap of two levels."""
    low, high = np.quantile(resampled.means, [0.025, 0.975])
    return low, high


def studentised(effect: Effect, resampled: Resampled) -> Interval:
    """Bootstrap of t: each replicate by its own standard error. One without any is left out."""
    has_error = resampled.errors > 0
    if not has_error.any():
        return effect.estimate, effect.estimate
    t = (resampled.means[has_error] - effect.estimate) / resampled.errors[has_error]
    low, high = np.quantile(t, [0.025, 0.975])
    return effect.estimate - high * effect.standard_error, effect.estimate - low * effect.standard_error


def cluster_robust(D: Differences) -> Interval:
    """Two-way clustering (Cameron, Gelbach & Miller 2011), with t of the fewer clusters less one."""
    K, n = D.shape
    centred = D - D.mean(dtype=float)
    parts = (np.square(centred.sum(1)).sum() * K / (K - 1), np.square(centred.sum(0)).sum() * n / (n - 1))
    variance = max(parts[0] + parts[1] - np.square(centred).sum(), *parts) / (K * n) ** 2
    half = stats.t.ppf(0.975, min(K, n) - 1) * math.sqrt(variance)
    return D.mean() - half, D.mean() + half


def over_seeds(D: Differences) -> Interval:
    """Student's t over the seeds' means, as if there were no other sessions."""
    half = stats.t.ppf(0.975, len(D) - 1) * D.mean(1).std(ddof=1) / math.sqrt(len(D))
    return D.mean() - half, D.mean() + half


def over_sessions(D: Differences) -> Interval:
    """The normal interval over the sessions' means, as if there were no other seeds."""
    half = stats.norm.ppf(0.975) * D.mean(0).std(ddof=1) / math.sqrt(D.shape[1])
    return D.mean() - half, D.mean() + half


def other_ways(effect: Effect, D: Differences, rng: np.random.Generator) -> dict[str, Interval]:
    """Intervals that study/statistics.py could have given."""
    resampled = resample(D, REPLICATES, rng)
    return {
        "percentile bootstrap": percentile(resampled),
        "studentised bootstrap": studentised(effect, resampled),
        "two-way clusters": cluster_robust(D),
        "t over seeds": over_seeds(D),
        "sessions only": over_sessions(D),
    }


# ---- simulated studies ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What the simulated studies of one population and size came to. Widths are in true standard errors."""

    population: str
    K: int
    n: int
    truth: float
    """In true standard errors."""
    seed_share: float
    """Share of the true variance that is the seeds' own."""
    coverage: float
    width: float
    helps: float
    hurts: float
    theory: float
    """How often either is said, by `power`."""
    ways: dict[str, tuple[float, float]]
    """Coverage and width of the other ways."""


def simulate(
    population: Population, K: int, n: int, studies: int, rng: np.random.Generator, *, ways: bool = False
) -> Line:
    """Studies of one size. Of every fourth, the other ways are measured as well if `ways` says so."""
    noise, truth = population.noise(), population.truth
    error = standard_error(noise, K, n)
    effects = []
    others: dict[str, list[Interval]] = {}
    for number in range(studies):
        ours, other = population.draw(K, n, rng)
        effects.append(difference(ours, other))
        if ways and number % 4 == 0:
            for way, interval in other_ways(effects[-1], ours.astype(np.int8) - other, rng).items():
                others.setdefault(way, []).append(interval)
    words = [verdict(effect, effect.p, worthwhile=0.0).word for effect in effects]
    coverage, width = covered([(effect.low, effect.high) for effect in effects], truth)
    return Line(
        population=population.name,
        K=K,
        n=n,
        truth=truth / error,
        seed_share=noise["seed_sd"] ** 2 / K / error**2,
        coverage=coverage,
        width=width / error,
        helps=words.count("helps") / studies,
        hurts=words.count("hurts") / studies,
        theory=power(truth, K, **noise, n_sessions=n),
        ways={way: (shares[0], shares[1] / error) for way, x in others.items() if (shares := covered(x, truth))},
    )


def covered(intervals: Sequence[Interval], truth: float) -> tuple[float, float]:
    """The share of intervals that the truth is in, and their mean width."""
    low, high = np.array(intervals).T
    return float(np.mean((low <= truth) & (truth <= high))), float(np.mean(high - low))


# ---- the naive way ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Naive:
    """How often single best runs are said to differ, where no difference is."""

    stage: str
    n: int
    cells: tuple[int, int]
    higher: float
    beyond_margin: float


def naive(
    val: Hits, test: Hits, stage: str, cells: tuple[int, int], n: int, studies: int, rng: np.random.Generator
) -> Naive:
    """Two arms that are one: each shows the test of the best by validation of its own cells, which are seeds.

    Args:
        val: Hits of the arm by validation.
        test: By test, of the same runs.
        stage: How long they were trained.
        cells: How many the arm that is hoped for has, and the other one; no seed serves twice.
        n: Sessions.
        studies: How many.
        rng: Where everything is drawn from.
    """
    P, S = test.shape
    higher = beyond = 0
    for _ in range(studies):
        seeds, sessions = rng.permutation(P)[: sum(cells)], rng.integers(S, size=n)
        by_val = val[seeds[:, None], sessions].mean(1)
        first, second = by_val[: cells[0]].argmax(), cells[0] + by_val[cells[0] :].argmax()
        D = test[seeds[[first]][:, None], sessions].astype(np.int8) - test[seeds[[second]][:, None], sessions]
        higher += D.sum() > 0
        beyond += over_sessions(D)[0] > 0
    return Naive(stage=stage, n=n, cells=cells, higher=higher / studies, beyond_margin=beyond / studies)


# ---- real studies ----

STUDY_ARMS = {
    "S-": {"alpha": 0.0},
    "S+": {"alpha": 0.5, "context": "item"},
    "skips of another session": {"alpha": 0.5, "context": "item", "negative_scope": "other_session"},
}
STUDY_CELLS = ({"learning_rate": 0.01}, {"learning_rate": 0.02})
STUDY_SEEDS = range(101, 106)
CLAIMS = (("S+", "S-"), ("S+", "skips of another session"))
STUDY_EPOCHS = 5
WORTHWHILE = 0.01


def real_study(number: int) -> list[tuple[Effect, str]]:
    """A whole study on a log of its own in which skips mean nothing: effect and verdict of each claim."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = synthetic_dataset(Path(folder), sessions=1_000, items=500, seed=1_000 + number, skip_signal=0.0)
    evaluators = {split: Evaluator(dataset, split) for split in ("val", "test")}

    def trained(settings: Mapping[str, float | str], seed: int) -> tuple[float, Hits]:
        """The validation's HR@10 and the test's hits of a run at its best epoch."""
        patience = STUDY_EPOCHS - 1
        config = from_flat({**SMALL, **settings, "seed": seed, "max_epochs": STUDY_EPOCHS, "patience": patience})
        trainer = Trainer(dataset, config, evaluator=evaluators["val"], show_progress=False)
        for result in trainer.epochs():
            if result.is_best:
                best = result.metrics[SELECTED_BY], hits_of(trainer, evaluators["test"])
        return best

    hits = {}
    for arm, settings in STUDY_ARMS.items():
        cells = [settings | cell for cell in STUDY_CELLS]
        chosen = max(enumerate(cells), key=lambda pair: trained(pair[1], seed=1 + pair[0])[0])[1]
        hits[arm] = np.stack([trained(chosen, seed)[1] for seed in STUDY_SEEDS])
    effects = [difference(hits[arm], hits[than]) for arm, than in CLAIMS]
    adjusted = holm([effect.p for effect in effects])
    return [
        (effect, verdict(effect, p, worthwhile=WORTHWHILE).word) for effect, p in zip(effects, adjusted, strict=True)
    ]


# ---- what is printed ----


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)) + "\n"


def share(value: float) -> str:
    """As 95.1%."""
    return f"{100 * value:.1f}%"


def about_lines(lines: Sequence[Line]) -> str:
    """What intervals and verdicts came to."""
    header = "population|seeds|sessions|noise from seeds|truth / error|interval covers|width / error"
    header += "|helps|hurts|either|either in theory"
    rows = []
    for x in lines:
        rows.append((x.population, str(x.K), f"{x.n:,}", share(x.seed_share), f"{x.truth:.2f}", share(x.coverage)))
        rows[-1] += (f"{x.width:.2f}", *map(share, (x.helps, x.hurts, x.helps + x.hurts, x.theory)))
    return table(header.split("|"), rows)


def about_ways(lines: Sequence[Line]) -> str:
    """Coverage of every way, and how wide its intervals are, beside each other."""
    rows = [
        (x.population, str(x.K), f"{x.n:,}", *(f"{share(covers)} ({width:.2f})" for covers, width in ways))
        for x in lines
        if (ways := ((x.coverage, x.width), *x.ways.values())) and x.ways
    ]
    return table(("population", "seeds", "sessions", "study/statistics.py", *lines[0].ways), rows)


def about_naive(found: Sequence[Naive]) -> str:
    """How often a gain would be claimed where there is none."""
    rows = [
        (x.stage, f"{x.cells[0]} and {x.cells[1]}", f"{x.n:,}", share(x.higher), share(x.beyond_margin)) for x in found
    ]
    return table(("trained", "cells of each arm", "sessions", "higher at all", "beyond the sessions' margin"), rows)


def simulated(hits: Mapping[str, Hits], studies: int) -> Iterator[str]:
    """The tables of all simulated studies."""
    rng = np.random.default_rng(1)
    lines = []
    cases = [(nothing, *size) for stage in STAGES for nothing in populations(hits, stage, rng) for size in SIZES]
    for nothing, K, n in tqdm(cases, desc="simulating", disable=None):
        lines.append(simulate(nothing, K, n, studies, rng, ways=True))
        lines.append(simulate(planted(nothing, K, n, rng), K, n, studies, rng))
    yield about_lines(lines)
    yield about_ways(lines)
    yield about_naive(
        [
            naive(hits[f"S+/{stage}/val"], hits[f"S+/{stage}/test"], stage, cells, n, studies, rng)
            for stage, cells, n in itertools.product(STAGES, NAIVE_CELLS, sorted({n for _, n in SIZES}))
        ]
    )


def about_real(studies: Sequence[Sequence[tuple[Effect, str]]]) -> str:
    """By claim: what was said, and the mean effect with its standard error, which tells whether there truly is none."""
    said = ("helps", "hurts", "no effect", "not enough runs")
    rows = []
    for (arm, than), outcomes in zip(CLAIMS, zip(*studies, strict=True), strict=True):
        words = [word for _, word in outcomes]
        effects = np.array([effect.estimate for effect, _ in outcomes])
        mean = f"{effects.mean():+.4f} +- {stats.sem(effects):.4f}" if len(effects) > 1 else f"{effects.mean():+.4f}"
        rows.append((f"{arm} above {than}", *(str(words.count(word)) for word in said), mean))
    some = (str(sum(any(found == word for _, found in study) for study in studies)) for word in said)
    rows.append(("any of them", *some, ""))
    return table((f"{len(studies)} studies", *said, "mean effect"), rows)


def main() -> None:
    """Calibrate, and print Markdown."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="a folder for the population's hits")
    parser.add_argument("--studies", type=int, default=2_000, help="simulated ones a line")
    parser.add_argument("--real-studies", type=int, default=0, metavar="N", help="run N whole studies instead")
    arguments = parser.parse_args()
    if arguments.real_studies:
        numbers = tqdm(range(arguments.real_studies), desc="studies", disable=None)
        texts = [about_real([real_study(number) for number in numbers])]
    else:
        texts = simulated(load_population(arguments.keep), arguments.studies)
    print("\n".join(texts), end="")


if __name__ == "__main__":
    main()
