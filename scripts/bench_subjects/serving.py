"""The project's answers to requests: from the log's own ids to the best 20 new ones, encoder included."""

import skiprec  # noqa: F401, I001  first of all, as the commands do: it has a word on how torch is loaded

import measuring
import torch
from measuring import BEST, BLOCKS, DROPOUT, FEED_FORWARD, HEADS, D, T

from skiprec.device import settle
from skiprec.model import ModelConfig, SequenceEncoder
from skiprec.recommend import Recommender
from skiprec.requests import Session


def main() -> None:
    """Print the figures."""
    task = measuring.read_task()
    settle("cpu", task.threads)
    shape = ModelConfig(dim=D, n_layers=BLOCKS, n_heads=HEADS, feed_forward=FEED_FORWARD, dropout=DROPOUT)
    model = SequenceEncoder(shape, task.items, T)
    with torch.no_grad():
        model.items.weight[1:] = measuring.item_table(task.items)
    ids = [f"t_{i}" for i in range(1, task.items + 1)]
    recommender = Recommender(model, ids, max_length=T, skip_threshold=2)
    n = measuring.sessions_of_a_request(task)
    drawn = torch.randint(task.items, (32 * n, T), generator=torch.Generator().manual_seed(1)).tolist()
    sessions = [Session([ids[i] for i in items], [2 * (i % 3 == 0) for i in range(T)]) for items in drawn]

    def ask(i: int) -> None:
        start = i % 32 * n
        recommender.recommend_many(sessions[start : start + n], k=BEST)

    figures = measuring.serve(task, recommender.table, ask, n)
    measuring.report(figures, notes="the whole request: ids, encoder, the best 20 but for the session's own")


if __name__ == "__main__":
    main()
