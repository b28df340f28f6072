"""Faiss's exact search by inner product. From predicted embeddings: it has no encoder."""

import faiss
import measuring
import torch
from measuring import BEST, D


def main() -> None:
    """Print the figures."""
    task = measuring.read_task()
    faiss.omp_set_num_threads(task.threads)
    index = faiss.IndexFlatIP(D)
    index.add(measuring.item_table(task.items).numpy())
    table = torch.from_numpy(faiss.rev_swig_ptr(index.get_xb(), task.items * D).reshape(task.items, D))
    queries, n = measuring.served_queries(task).numpy(), measuring.sessions_of_a_request(task)

    def ask(i: int) -> None:
        start = i % 32 * n
        index.search(queries[start : start + n], BEST)[1].tolist()

    figures = measuring.serve(task, table, ask, n)
    measuring.report(figures, notes="IndexFlatIP, from predicted embeddings", packages=("faiss-cpu",))


if __name__ == "__main__":
    main()
