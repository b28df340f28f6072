"""Plain PyTorch's answers: a product with the item table, then topk. From predicted embeddings, without an encoder."""

import measuring
import torch
from measuring import BEST


@torch.no_grad()
def main() -> None:
    """Print the figures."""
    task = measuring.read_task()
    measuring.keep_freed_memory()
    table, queries = measuring.item_table(task.items), measuring.served_queries(task)
    n = measuring.sessions_of_a_request(task)

    def ask(i: int) -> None:
        start = i % 32 * n
        torch.topk(queries[start : start + n] @ table.T, BEST)[1].tolist()

    measuring.report(measuring.serve(task, table, ask, n), notes="from predicted embeddings")


if __name__ == "__main__":
    main()
