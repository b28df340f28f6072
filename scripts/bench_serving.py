"""python scripts/bench_serving.py [--items 1000000] [--requests 200] [--batch 64] [--out FILE.json]

How long a recommendation takes at a large catalogue, d 128: p50 and p99 of one session, and sessions a second in
batches; beside plain PyTorch (the same encoder, a matrix product and topk) and faiss's exact search (IndexFlatIP, where
faiss is installed: `pip install faiss-cpu`), and the floor: to read the table once, as fast as a sum over it does.
Requests of all take turns, so that a noisy machine is noisy for all. It reports, and never fails for being slow.
"""

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from skiprec.model import ModelConfig, SequenceEncoder
from skiprec.recommend import Recommender
from skiprec.requests import Session

LENGTH, K = 20, 20
WITHIN = 1.3
"""Of the floor: what p99 is to be."""


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(1)
    model = SequenceEncoder(ModelConfig(), options.items, LENGTH).eval()
    recommender = Recommender(model, [f"t{i}" for i in range(options.items)], max_length=LENGTH, skip_threshold=2)
    draw = np.random.default_rng(1)
    sessions = [
        Session([f"t{i}" for i in draw.integers(options.items, size=LENGTH)], [0] * LENGTH)
        for _ in range(max(options.requests, options.batch))
    ]
    subjects = {"skiprec": lambda some: recommender.recommend_many(some, k=K)} | peers(recommender)
    table = recommender.table
    work = {name: (lambda s, ask=ask: ask([s])) for name, ask in subjects.items()}
    work["floor: the table read once"] = lambda session: table.sum()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for session in tqdm(sessions[: options.requests], desc="one session", disable=None):
        for name, ask in work.items():
            seconds[name].append(timed(lambda ask=ask, session=session: ask(session)))
    rows = {name: {"p50_ms": at(own, 50), "p99_ms": at(own, 99)} for name, own in seconds.items()}
    for name, ask in subjects.items():
        spent = [timed(lambda ask=ask: ask(sessions[: options.batch])) for _ in range(5)]
        rows[name]["sessions_per_second"] = options.batch / statistics.median(spent)
    print(f"{options.items:,} items, d {table.shape[1]}, {torch.get_num_threads()} threads")
    for name, row in rows.items():
        batch = f"{row['sessions_per_second']:10,.0f} sessions/s" if "sessions_per_second" in row else ""
        print(f"{name:34} p50 {row['p50_ms']:7.1f} ms  p99 {row['p99_ms']:7.1f} ms {batch}")
    ratio = rows["skiprec"]["p99_ms"] / rows["floor: the table read once"]["p99_ms"]
    print(f"skiprec's p99 is {ratio:.2f} times the floor's (goal: {WITHIN})")
    if "faiss, exact" not in rows:
        print("faiss is not installed, so it was not measured: pip install faiss-cpu")
    if options.out:
        options.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def peers(recommender: Recommender) -> dict[str, Callable[[list[Session]], object]]:
    """Others that answer the same sessions with the same encoder."""
    table = recommender.table.clone()

    @torch.no_grad()
    def encoded(sessions: list[Session]) -> torch.Tensor:
        items = torch.tensor([[recommender.index[i] for i in s.items] for s in sessions])
        return recommender.model.next_item(items, torch.full((len(sessions),), LENGTH), torch.zeros_like(items))

    found = {"plain PyTorch, matmul and topk": lambda sessions: (encoded(sessions) @ table.T).topk(K)}
    if importlib.util.find_spec("faiss"):
        import faiss

        index = faiss.IndexFlatIP(table.shape[1])
        index.add(table.numpy())
        found["faiss, exact"] = lambda sessions: index.search(encoded(sessions).numpy(), K)
    return found


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def at(seconds: list[float], percent: int) -> float:
    """A percentile, in milliseconds; the first request, which warms up, left out."""
    return 1000 * float(np.percentile(seconds[1:], percent))


if __name__ == "__main__":
    main()
