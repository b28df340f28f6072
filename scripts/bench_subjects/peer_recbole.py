"""RecBole's SASRec: its model and its step, without its DataLoader.

It trains on one target an example: a session is 20 examples of growing length here, as its data augmentation makes
them, and a step has those of 128 sessions. It has no sampled softmax: "catalogue" is its cross-entropy over all items,
"one" its BPR with one negative a target. Evaluation scores the whole catalogue.
"""

import warnings

import measuring
import torch
from measuring import BLOCKS, DROPOUT, FEED_FORWARD, HEADS, LEARNING_RATE, MAX_GRAD_NORM, B, D, T
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.model.sequential_recommender.sasrec import SASRec
from torch import Tensor, nn


class Catalogue:
    """All that the model asks of RecBole's dataset."""

    def __init__(self, items: int) -> None:
        self.items = items

    def num(self, _: str) -> int:
        """Items and padding."""
        return self.items + 1


def model_of(task: measuring.Task) -> SASRec:
    """Of the benchmark's size."""
    settings = {
        "hidden_size": D,
        "inner_size": FEED_FORWARD,
        "n_layers": BLOCKS,
        "n_heads": HEADS,
        "hidden_dropout_prob": DROPOUT,
        "attn_dropout_prob": DROPOUT,
        "hidden_act": "gelu",
        "MAX_ITEM_LIST_LENGTH": T,
        "loss_type": "BPR" if task.mode == "one" else "CE",
        "train_neg_sample_args": {"distribution": "uniform"} if task.mode == "one" else None,
        "use_gpu": False,
    }
    return SASRec(Config(model="SASRec", dataset="bench", config_dict=settings), Catalogue(task.items))


def examples(prefixes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(n, T + 1) -> n T examples: inputs of 1 to T items, padded with 0 on the right, their lengths, and targets."""
    n = len(prefixes)
    inputs = prefixes[:, None, :T].expand(n, T, T).tril()
    return inputs.reshape(n * T, T), torch.arange(1, T + 1).repeat(n), prefixes[:, 1:].reshape(n * T)


def main() -> None:
    """Measure what the command line asks for."""
    warnings.simplefilter("ignore")
    task = measuring.read_task()
    measuring.keep_freed_memory()
    sessions = measuring.whole_sessions(task)
    model = model_of(task)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)  # as its Trainer makes it

    def train(i: int) -> int:
        inputs, lengths, targets = examples(sessions[measuring.batch_rows(i), : T + 1])
        batch = {model.ITEM_SEQ: inputs, model.ITEM_SEQ_LEN: lengths, model.POS_ITEM_ID: targets}
        if task.mode == "one":
            batch[model.NEG_ITEM_ID] = torch.randint(1, task.items + 1, targets.shape)
        optimizer.zero_grad()
        model.calculate_loss(Interaction(batch)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        return B

    size = measuring.EVALUATED_AT_A_TIME
    full = torch.full((size,), T)

    @torch.no_grad()
    def evaluate(i: int) -> int:
        at = torch.arange(i * size, (i + 1) * size) % len(sessions)
        batch = Interaction({model.ITEM_SEQ: sessions[at, 1 : T + 1], model.ITEM_SEQ_LEN: full})
        model.full_sort_predict(batch).topk(20, dim=1)
        return size

    if task.measure == "train":
        model.train()
        figures = measuring.clock(train, task.seconds)
        kind = "BPR, 1 negative a target" if task.mode == "one" else "cross-entropy over the catalogue"
        notes = f"{kind}; 20 examples a session"
    else:
        model.eval()
        figures = measuring.clock(evaluate, task.seconds)
        notes = "ranks the whole catalogue, best 20"
    measuring.report(figures, notes=notes, packages=("recbole",))


if __name__ == "__main__":
    main()
