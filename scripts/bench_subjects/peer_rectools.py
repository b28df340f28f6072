"""RecTools' SASRec by its own network, negative sampler, loss and ranker, without DataLoader and Trainer.

Its negatives are drawn a position, 1,000 for each of the 20: the only way it has. It has no evaluation against a few
candidates: it ranks the whole catalogue. Through its Dataset the catalogue would shrink to the items that were played,
so the network is put together from its parts here.
"""

import warnings

import measuring
import numpy as np
import torch
from measuring import BLOCKS, DROPOUT, HEADS, LEARNING_RATE, MAX_GRAD_NORM, B, D, N, T
from rectools.models.nn.item_net import IdEmbeddingsItemNet, SumOfEmbeddingsConstructor
from rectools.models.nn.transformers.lightning import TransformerLightningModule
from rectools.models.nn.transformers.negative_sampler import CatalogUniformSampler
from rectools.models.nn.transformers.net_blocks import LearnableInversePositionalEncoding
from rectools.models.nn.transformers.sasrec import SASRecTransformerLayers
from rectools.models.nn.transformers.similarity import DistanceSimilarityModule
from rectools.models.nn.transformers.torch_backbone import TransformerTorchBackbone
from rectools.models.rank import Distance, TorchRanker
from torch import nn

SMALL_CATALOGUE = 200_000


def module_of(items: int) -> TransformerLightningModule:
    """As SASRecModel puts it together for a dataset with these items, which count from 1."""
    rows = items + 1
    backbone = TransformerTorchBackbone(
        n_heads=HEADS,
        dropout_rate=DROPOUT,
        item_model=SumOfEmbeddingsConstructor(rows, [IdEmbeddingsItemNet(D, rows, DROPOUT)]),
        pos_encoding_layer=LearnableInversePositionalEncoding(True, T, D),
        transformer_layers=SASRecTransformerLayers(n_blocks=BLOCKS, n_factors=D, n_heads=HEADS, dropout_rate=DROPOUT),
        similarity_module=DistanceSimilarityModule(),
        use_causal_attn=True,
    )
    module = TransformerLightningModule(
        torch_model=backbone,
        model_config={},
        dataset_schema={},
        item_external_ids=np.arange(rows),
        item_extra_tokens=("PAD",),
        data_preparator=None,
        lr=LEARNING_RATE,
        gbce_t=0.2,
        loss="sampled_softmax",
        adam_betas=(0.9, 0.999),
    )
    module.on_train_start()  # its initial weights
    return module


def main() -> None:
    """Measure what the command line asks for."""
    warnings.simplefilter("ignore")
    task = measuring.read_task()
    measuring.keep_freed_memory()
    sessions = measuring.whole_sessions(task)
    module = module_of(task.items)
    optimizer = module.configure_optimizers()
    sampler = CatalogUniformSampler(N)
    weights = torch.ones(B, T)

    def train(i: int) -> int:
        rows = sessions[measuring.batch_rows(i)]
        batch = {"x": rows[:, :T], "y": rows[:, 1 : T + 1], "yw": weights}
        batch["negatives"] = sampler.get_negatives(batch, lowest_id=1, highest_id=task.items + 1)
        optimizer.zero_grad()
        loss = module.training_step(batch, i)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        return B

    # The ranker copies the table at every call, as `recommend` does once for all users: so give it many at once.
    ranked_at_a_time = 2048 if task.items <= SMALL_CATALOGUE else 512
    size = measuring.EVALUATED_AT_A_TIME
    every_item = np.arange(1, task.items + 1)

    @torch.no_grad()
    def evaluate(i: int) -> int:
        at = torch.arange(i * ranked_at_a_time, (i + 1) * ranked_at_a_time) % len(sessions)
        net = module.torch_model
        item_rows = net.item_model.get_all_embeddings()
        encoded = [net.encode_sessions({"x": sessions[rows, 1 : T + 1]}, item_rows)[:, -1] for rows in at.split(size)]
        ranker = TorchRanker(Distance.DOT, "cpu", torch.cat(encoded), item_rows)
        ranker.rank(np.arange(len(at)), k=20, sorted_object_whitelist=every_item)
        return len(at)

    if task.measure == "train":
        module.train()
        figures = measuring.clock(train, task.seconds)
        notes = "1,000 negatives a position, from the whole catalogue"
    else:
        module.eval()
        figures = measuring.clock(evaluate, task.seconds)
        notes = "ranks the whole catalogue, best 20"
    measuring.report(figures, notes=notes, packages=("rectools", "pytorch-lightning"))


if __name__ == "__main__":
    main()
