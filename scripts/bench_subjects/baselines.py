"""All six baselines on one split: building them, then every metric. Sessions in the paper's proportion to the items.

Items are drawn one by one by a popularity that falls as rank to the minus .95, so popular items share many sessions and
hardly any pair of items meets twice: more neighbours to tell apart than real sessions have. Baselines are built from
all sessions, and a tenth of these ask: what the answers take is taken times ten. Each baseline's seconds, of the clock
and of the processor, are in the row; drawing the candidates, which models need too, is apart.
"""

import skiprec  # noqa: F401, I001  first of all, as the commands do: it has a word on how torch is loaded

import time
from collections.abc import Callable
from typing import TypeVar

import measuring
import torch
from measuring import WHOLE
from project import dataset_in_memory
from torch import Tensor

from skiprec.baselines import baselines, evaluate_baselines
from skiprec.evaluation import Evaluator

SESSIONS_AN_ITEM = 0.45
"""450,000 sessions of a million tracks."""
ASK_ONE_IN = 10
"""Every how many sessions one asks."""
ZIPF_EXPONENT = 0.95
Result = TypeVar("Result")


def main() -> None:
    """Print the figures."""
    task = measuring.read_task()
    dataset = dataset_in_memory(popular_sessions(int(SESSIONS_AN_ITEM * task.items), task.items), task.items)
    small = dataset_in_memory(popular_sessions(300, 1000), 1000)
    evaluate_baselines(baselines(small), Evaluator(small, "test"))  # compiles
    asking = dataset.some(dataset.n_sessions // ASK_ONE_IN)
    evaluator, *draw = timed(lambda: Evaluator(asking, "test"))
    start, others = time.perf_counter(), measuring.cpu_seconds_of_others()
    scorers, *build = timed(lambda: baselines(dataset))
    each = {"building all": build}
    for name, scorer in scorers.items():
        _, *spent = timed(lambda scorer=scorer, name=name: evaluate_baselines({name: scorer}, evaluator))
        each[name] = [ASK_ONE_IN * part for part in spent]
    seconds, processor_seconds = map(sum, zip(*each.values(), strict=True))
    figures = {
        "sessions_per_second": dataset.n_sessions / seconds,
        "seconds": seconds,
        "processor_seconds": processor_seconds,
        "draw_seconds": [ASK_ONE_IN * part for part in draw],
        "seconds_each": each,
        "others_share": measuring.others_share(start, others),
    }
    notes = f"{dataset.n_sessions:,} sessions: {seconds:.0f} s, of the processor {processor_seconds:.0f}"
    measuring.report(figures, notes=notes)


def popular_sessions(n: int, items: int) -> Tensor:
    """(n, WHOLE) item indices, drawn by popularity."""
    cumulative = torch.arange(1, items + 1, dtype=torch.float64).pow(-ZIPF_EXPONENT).cumsum(0)
    chance = torch.rand(n, WHOLE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return 1 + torch.searchsorted(cumulative, chance * cumulative[-1]).clamp(max=items - 1)


def timed(work: Callable[[], Result]) -> tuple[Result, float, float]:
    """What it gives, its seconds, and the processor's."""
    start, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - start, time.process_time() - processor


if __name__ == "__main__":
    main()
