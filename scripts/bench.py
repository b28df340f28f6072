"""Sessions a second and peak memory of the project and its peers, at several sizes of the catalogue, in one table.

python scripts/bench.py                      the project, plain PyTorch, the floor, and what a run and a study add
python scripts/bench.py --peers              RePlay, RecTools and RecBole too, each in an environment made on demand
python scripts/bench.py --only serving       requests, beside PyTorch and Faiss and the reading of the item table
python scripts/bench.py --quick --sizes 2000 seconds: does everything work? Its figures mean nothing

Subjects are programs of their own (scripts/bench_subjects/), run one after the other, round after round, so that a
noisy machine is noisy for all; medians over the rounds. It reports, and never fails because something is slow.
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import venv
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
SUBJECTS = Path(__file__).resolve().parent / "bench_subjects"
CACHE = ROOT / ".bench"
SMALL, LARGE = 50_000, 1_000_000
TIMEOUT_SECONDS = 900


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A program, and what it is asked to measure."""

    name: str
    title: str
    program: str
    measures: tuple[tuple[str, str], ...]
    """(measure, mode): see bench_subjects/measuring.py."""
    variant: str = ""
    environment: str = ""
    """Which requirements-NAME.txt; empty for the one that runs this."""
    most_items: int = LARGE
    """Not run at more: it would not fit the memory of a usual machine, or take hours."""
    group: str = ""
    """A name by which --only takes several."""
    on_gpu: bool = False
    """Whether --device cuda reaches it; others are left out then."""
    any_size: bool = True
    """False: what it measures does not depend on the catalogue, so it is run once a round."""


TRAIN = (("train", "session"), ("train", "shared"))
SESSION = (("train", "session"),)
CANDIDATES, CATALOGUE = ("evaluate", "candidates"), ("evaluate", "catalogue")
BOUND = (("bound", "session"), ("bound", "shared"))
OVERHEAD = (("overhead", "session"),)
SERVE = (("serve", "one"), ("serve", "batch"))


def subject(name: str, title: str, program: str, measures: tuple, **others) -> Subject:
    """In one line."""
    return Subject(name=name, title=title, program=program, measures=measures, **others)


REPLAY = {"program": "peer_replay.py", "environment": "replay"}
ALL = (
    subject("skiprec", "skiprec", "project.py", (*TRAIN, CANDIDATES), on_gpu=True),
    subject("skiprec-s-plus", "skiprec, S+ item", "project.py", SESSION, variant="s-plus", on_gpu=True),
    subject("floor", "floor", "floor.py", BOUND),
    subject("plain", "plain PyTorch, fused Adam", "peer_plain.py", (*TRAIN, CANDIDATES), on_gpu=True),
    subject("plain-malloc", "the same, freed memory kept", "peer_plain.py", TRAIN, variant="malloc"),
    subject("plain-sparse", "the same, SparseAdam", "peer_plain.py", TRAIN, variant="sparse", on_gpu=True),
    subject("replay", "RePlay SasRec", measures=(*TRAIN, CANDIDATES, CATALOGUE), **REPLAY),
    subject("replay-fast", "RePlay SasRec, fused Adam", measures=TRAIN, variant="fast", **REPLAY),
    subject(
        "replay-grouped", "RePlay, grouped loss, fused", measures=SESSION, variant="grouped", most_items=SMALL, **REPLAY
    ),
    subject(
        "rectools", "RecTools SASRec", "peer_rectools.py", (("train", "position"), CATALOGUE), environment="rectools"
    ),
    subject("recbole", "RecBole SASRec, BPR", "peer_recbole.py", (("train", "one"), CATALOGUE), environment="recbole"),
    subject(
        "recbole-ce",
        "RecBole SASRec, CE",
        "peer_recbole.py",
        (("train", "catalogue"),),
        environment="recbole",
        most_items=SMALL,
    ),
    subject("baselines", "all six baselines, a split", "baselines.py", (("evaluate", "baselines"),)),
    subject("serving", "skiprec, a request", "serving.py", SERVE, group="serving"),
    subject("serving-plain", "plain PyTorch, matmul and topk", "serving_plain.py", SERVE, group="serving"),
    subject("serving-faiss", "Faiss IndexFlatIP", "peer_faiss.py", SERVE, group="serving", environment="faiss"),
    subject("train-overhead", "`skiprec train`", "train_overhead.py", OVERHEAD, any_size=False),
    subject("study-overhead", "a trial of a study", "study_overhead.py", OVERHEAD, any_size=False),
)


@dataclass(frozen=True)
class Goal:
    """A line of the table of goals, and what was measured."""

    goal: str
    relation: str
    wanted: float
    measured: float | None

    @property
    def met(self) -> bool | None:
        """None where it was not measured."""
        if self.measured is None:
            return None
        return self.measured >= self.wanted if self.relation == "at least" else self.measured <= self.wanted


def main() -> None:
    """Run, print, write."""
    options = read_options()
    subjects = [s for s in ALL if {s.name, s.group} & set(options.only)] if options.only else list(ALL)
    if not options.only and not options.peers:
        subjects = [s for s in subjects if not s.environment]
    if options.device == "cuda":
        subjects = [s for s in subjects if s.on_gpu]
    pythons = environments({s.environment for s in subjects})
    rows = run_rounds(subjects, pythons, options)
    add_ratios(rows)
    goals = goals_of(rows)
    print(table_of_rows(rows))
    print(table_of_goals(goals))
    result = {
        "about": about(options),
        "rows": rows,
        "goals": [asdict(goal) | {"met": goal.met} for goal in goals],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [s.name for s in ALL]  # every group is named after one of them
    parser.add_argument("--peers", action="store_true", help="the peers that pip has to install, too")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help="of " + ",".join(names))
    parser.add_argument("--sizes", type=lambda text: [int(n) for n in text.split(",")], help="items, by commas")
    parser.add_argument("--rounds", type=int, default=3, help="times that everything is run")
    parser.add_argument("--seconds", type=float, default=5.0, help="that one subject measures in one round")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every subject")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: of whom can train there")
    parser.add_argument("--quick", action="store_true", help="one round of a blink")
    parser.add_argument("--out", type=Path, default=CACHE / "bench.json", help="the JSON file to write")
    options = parser.parse_args()
    if unknown := sorted(set(options.only) - set(names)):
        parser.error(f"--only {unknown[0]}: unknown, expected one of {', '.join(names)}")
    options.sizes = options.sizes or [SMALL, 200_000, LARGE]
    if options.quick:
        options.rounds, options.seconds = 1, 0.2
    return options


def environments(names: set[str]) -> dict[str, str | Exception]:
    """The Python of each environment, made where it is not there yet; what went wrong, where it cannot be made."""
    pythons: dict[str, str | Exception] = {"": sys.executable}
    for name in sorted(names - {""}):
        requirements = SUBJECTS / f"requirements-{name}.txt"
        digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
        folder = CACHE / f"{name}-{digest}"
        python = folder / "bin" / "python"
        if not (folder / "installed").exists():
            print(f"making {folder} for {name} (once)", file=sys.stderr)
            try:
                venv.create(folder, clear=True, with_pip=True)
                pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
                subprocess.run([*pip, "-r", str(requirements)], check=True)
                (folder / "installed").touch()
            except (OSError, subprocess.CalledProcessError) as error:
                pythons[name] = error
                continue
        pythons[name] = str(python)
    return pythons


def run_rounds(subjects: list[Subject], pythons: dict, options: argparse.Namespace) -> list[dict]:
    """Every subject at every size, round after round; a row each."""
    plan = [
        (subject, measure, mode, items)
        for items in options.sizes
        for subject in subjects
        for measure, mode in subject.measures
        if items <= subject.most_items and (subject.any_size or items == options.sizes[0])
    ]
    runs: list[list[dict]] = [[] for _ in plan]
    with tqdm(total=len(plan) * options.rounds, unit=" runs", disable=None) as bar:
        for _ in range(options.rounds):
            for (subject, measure, mode, items), results in zip(plan, runs, strict=True):
                bar.set_postfix_str(f"{subject.name} {measure} {mode} {items:,}")
                results.append(run_once(subject, measure, mode, items, pythons[subject.environment], options))
                bar.update()
    return [row_of(*what, results) for what, results in zip(plan, runs, strict=True)]


def run_once(
    subject: Subject, measure: str, mode: str, items: int, python: str | Exception, options: argparse.Namespace
) -> dict:
    """What a subject printed, or {"error": its last line}."""
    if isinstance(python, Exception):
        return {"error": f"its environment could not be made: {python}"}
    command = [python, str(SUBJECTS / subject.program), "--measure", measure, "--mode", mode, "--items", str(items)]
    command += ["--seconds", str(options.seconds), "--threads", str(options.threads), "--variant", subject.variant]
    command += ["--device", options.device] if subject.on_gpu else []
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    environment |= {"PYTHONPATH": path} if not subject.environment else {"PYTHONPATH": ""}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {TIMEOUT_SECONDS} s"}
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or [f"ended with code {done.returncode} and said nothing"])[-1]
        return {"error": last}


def row_of(subject: Subject, measure: str, mode: str, items: int, results: list[dict]) -> dict:
    """The median of the rounds that worked (of a floor, the least); the error, where none did."""
    row = {"subject": subject.name, "title": subject.title, "measure": measure, "mode": mode, "items": items}
    good = [result for result in results if "error" not in result]
    if not good:
        return row | {"error": results[-1]["error"]}
    if measure == "bound":  # what the machine can do at best, not what it did on average
        best = min(good, key=lambda result: result["step_seconds"])
        return row | best | {"runs": good, "failed_runs": len(results) - len(good)}
    medians = {
        name: statistics.median(result[name] for result in good)
        for name, value in good[0].items()
        if isinstance(value, int | float)
    }
    others = {name: value for name, value in good[-1].items() if name not in medians}
    return row | others | medians | {"runs": good, "failed_runs": len(results) - len(good)}


def add_ratios(rows: list[dict]) -> None:
    """Beside each row how many times as fast the project is at the same size, measure and, but in evaluation, mode."""
    for row in rows:
        mode = {"train": "shared" if row["mode"] == "shared" else "session", "evaluate": "candidates"}
        subject = "serving" if row["measure"] == "serve" else "skiprec"
        own = find(rows, subject, row["measure"], mode.get(row["measure"], row["mode"]), row["items"])
        row["ratio"] = divided(value(own, "sessions_per_second"), value(row, "sessions_per_second"))


def find(rows: list[dict], subject: str, measure: str, mode: str, items: int) -> dict | None:
    """That row, if it was run."""
    key = (subject, measure, mode, items)
    return next((r for r in rows if (r["subject"], r["measure"], r["mode"], r["items"]) == key), None)


def value(row: dict | None, name: str) -> float | None:
    """A row's figure, if there is one."""
    return row.get(name) if row else None


def divided(a: float | None, b: float | None) -> float | None:
    """a / b where both are known."""
    return a / b if a is not None and b else None


def goals_of(rows: list[dict]) -> list[Goal]:
    """The table of goals of this project, each from the rows of this very run."""

    def rate(subject: str, mode: str, items: int, measure: str = "train") -> float | None:
        return value(find(rows, subject, measure, mode, items), "sessions_per_second")

    def against(subject: str, mode: str, items: int) -> float | None:
        return divided(rate("skiprec", mode, items), rate(subject, mode, items))

    goals = []
    for subject, title, mode, wanted in (
        ("replay", "RePlay, its own Adam", "session", (12, 15)),
        ("replay-fast", "RePlay, fused Adam", "session", (12, 15)),
        ("replay", "RePlay, its own Adam", "shared", (2.7, 24)),
        ("replay-fast", "RePlay, fused Adam", "shared", (2.7, 24)),
        ("plain", "plain PyTorch, fused Adam", "session", (1.8, 5)),
        ("plain-malloc", "the same, freed memory kept", "session", (1.8, 5)),
    ):
        for items, least in zip((SMALL, LARGE), wanted, strict=True):
            name = f"training against {title}, {mode}, {items:,} items"
            goals.append(Goal(name, "at least", least, against(subject, mode, items)))
    for mode, least in (("session", 0.65), ("shared", 0.85)):
        ratio = divided(rate("skiprec", mode, LARGE), rate("skiprec", mode, SMALL))
        goals.append(Goal(f"training at {LARGE:,} items relative to {SMALL:,}, {mode}", "at least", least, ratio))
    for mode, most in (("session", 3.5), ("shared", 2.8)):
        step = value(find(rows, "skiprec", "train", mode, LARGE), "step_seconds")
        floor = value(find(rows, "floor", "bound", mode, LARGE), "step_seconds")
        goals.append(
            Goal(f"step time against the floor, {mode}, {LARGE:,} items", "at most", most, divided(step, floor))
        )
    evaluation = divided(
        rate("skiprec", "candidates", SMALL, "evaluate"), rate("rectools", "catalogue", SMALL, "evaluate")
    )
    goals.append(Goal(f"evaluation against RecTools (whole catalogue), {SMALL:,} items", "at least", 2.7, evaluation))
    peaks = [
        row["peak_mib"] for row in rows if row["subject"] == "skiprec" and row["items"] == LARGE and "peak_mib" in row
    ]
    peak_gb = max(peaks) * 2**20 / 1e9 if peaks else None
    goals.append(Goal(f"peak memory at {LARGE:,} items, GB", "at most", 2.8, peak_gb))
    seconds = value(find(rows, "baselines", "evaluate", "baselines", LARGE), "seconds")
    goals.append(Goal(f"all six baselines at {LARGE:,} items, seconds a split", "at most", 600, seconds))
    one = find(rows, "serving", "serve", "one", LARGE)
    for name, title in (("p99_seconds", "99th percentile"), ("step_seconds", "median")):
        ratio = divided(value(one, name), value(one, "reading_seconds"))
        goals.append(Goal(f"a request at {LARGE:,} items, {title}, over a reading of the table", "at most", 1.3, ratio))
    for subject, title in (("serving-plain", "plain PyTorch"), ("serving-faiss", "Faiss")):
        for mode, of in (("one", "a request of one session"), ("batch", "of 128")):
            ratio = divided(rate("serving", mode, LARGE, "serve"), rate(subject, mode, LARGE, "serve"))
            goals.append(Goal(f"{of} against {title}, {LARGE:,} items", "at least", 1, ratio))
    for subject, title, most in (
        ("train-overhead", "`skiprec train` over the bare step loop, validation apart", 1.03),
        ("study-overhead", "a study's time per trial besides training, seconds", 0.3),
    ):
        figure = next((row.get("figure") for row in rows if row["subject"] == subject), None)
        goals.append(Goal(title, "at most", most, figure))
    return goals


def table_of_rows(rows: list[dict]) -> str:
    """For people."""
    columns = {
        "sessions/s": ("sessions_per_second", 1, ",.0f"),
        "step ms": ("step_seconds", 1000, ",.1f"),
        "p99 ms": ("p99_seconds", 1000, ",.1f"),
        "reading ms": ("reading_seconds", 1000, ",.1f"),
        "peak MiB": ("peak_mib", 1, ",.0f"),
        "GPU MiB": ("gpu_peak_mib", 1, ",.0f"),
        "ratio": ("ratio", 1, ",.2f"),
        "others %": ("others_share", 100, ".0f"),
    }
    lines = [("items", "measure", "mode", "subject", *columns, "notes")]
    for row in rows:
        texts = []
        for name, scale, form in columns.values():
            figure = value(row, name)
            texts.append("-" if figure is None else format(scale * figure, form))
        notes = f"FAILED: {row['error']}" if "error" in row else row["notes"]
        if "figure" in row:
            notes = f"{row['figure']:.3f} {notes}"
        lines.append((f"{row['items']:,}", row["measure"], row["mode"], row["title"], *texts, notes))
    legend = (
        "ratio: the project's sessions a second over the row's. reading: of the item table, once, in the same process "
        "between requests, whose step is their median. others: share of the cores that other programs took "
        "meanwhile; figures from a busy machine (10 and more) are not to be believed, the floor's least of all."
    )
    return aligned(lines, right=(0, *range(4, 4 + len(columns)))) + "\n" + legend


def table_of_goals(goals: list[Goal]) -> str:
    """For people."""
    lines = [("goal", "", "wanted", "measured", "met")]
    for goal in goals:
        measured = "-" if goal.measured is None else f"{goal.measured:.3g}"
        met = {None: "not measured", True: "yes", False: "no"}[goal.met]
        lines.append((goal.goal, goal.relation, f"{goal.wanted:g}", measured, met))
    return "\n" + aligned(lines, right=(2, 3))


def aligned(lines: list[tuple[str, ...]], right: tuple[int, ...]) -> str:
    """Columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def about(options: argparse.Namespace) -> dict:
    """Machine, commit, settings: what the figures belong to. Versions are in the rows."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    cpu = platform.processor() or platform.machine()
    memory_gib = None
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
        memory_gib = round(int(Path("/proc/meminfo").read_text().split()[1]) / 2**20, 1)
    return {
        "machine": {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": memory_gib, "platform": platform.platform()},
        "python": platform.python_version(),
        "commit": git("rev-parse", "HEAD"),
        "changed_files": bool(git("status", "--porcelain", "--untracked-files=no")),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {
            name: getattr(options, name) for name in ("sizes", "rounds", "seconds", "threads", "device", "quick")
        },
    }


if __name__ == "__main__":
    main()
