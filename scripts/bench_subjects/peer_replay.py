"""RePlay's SasRec (replay.nn) by its LightningModule: its forward and loss, without DataLoader and Trainer.

Variants: "" is CESampled with the optimiser that RePlay makes. "fast" is the same with fused Adam, given through
RePlay's own hook for optimisers. "grouped" is that with GroupedCESampled and a session a group, which scores a
session's negatives once and not once a position, but makes a gradient of the whole table for each session.
"""

import warnings

import measuring
import torch
from measuring import BLOCKS, DROPOUT, FEED_FORWARD, HEADS, LEARNING_RATE, MAX_GRAD_NORM, B, D, N, T
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.nn.agg import SumAggregator
from replay.nn.embedding import SequenceEmbedding
from replay.nn.lightning import LightningModule
from replay.nn.lightning.optimizer import BaseOptimizerFactory, OptimizerFactory
from replay.nn.loss import CESampled, GroupedCESampled
from replay.nn.mask import DefaultAttentionMask
from replay.nn.sequential import PositionAwareAggregator, SasRec, SasRecBody, SasRecTransformerLayer
from replay.nn.transform import UniformNegativeSamplingTransform
from torch import Tensor, nn

NAME = "item_id"


class FusedAdam(BaseOptimizerFactory):
    """RePlay asks this for an optimiser."""

    def create(self, parameters) -> torch.optim.Optimizer:
        """Fused Adam over all of them."""
        return torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)


def module_of(task: measuring.Task) -> LightningModule:
    """The model as RePlay's documentation builds it, of the benchmark's size; items count from 0, padding is last."""
    schema = TensorSchema(
        [
            TensorFeatureInfo(
                NAME,
                is_seq=True,
                feature_type=FeatureType.CATEGORICAL,
                embedding_dim=D,
                padding_value=task.items,
                cardinality=task.items,
                feature_hint=FeatureHint.ITEM_ID,
                feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, NAME)],
            )
        ]
    )
    body = SasRecBody(
        embedder=SequenceEmbedding(schema=schema),
        embedding_aggregator=PositionAwareAggregator(
            embedding_aggregator=SumAggregator(embedding_dim=D), max_sequence_length=T, dropout=DROPOUT
        ),
        attn_mask_builder=DefaultAttentionMask(reference_feature_name=NAME, num_heads=HEADS),
        encoder=SasRecTransformerLayer(
            embedding_dim=D,
            num_heads=HEADS,
            num_blocks=BLOCKS,
            dropout=DROPOUT,
            activation="gelu",
            hidden_dim=FEED_FORWARD,
        ),
        output_normalization=nn.LayerNorm(D),
    )
    is_grouped = task.mode == "session" and task.variant == "grouped"
    loss = GroupedCESampled(logical_batch_size=1) if is_grouped else CESampled()
    as_it_comes = OptimizerFactory("adam", learning_rate=LEARNING_RATE, betas=(0.9, 0.999))
    return LightningModule(SasRec(body, loss), FusedAdam() if task.variant in ("fast", "grouped") else as_it_comes)


def main() -> None:
    """Measure what the command line asks for."""
    warnings.simplefilter("ignore")
    task = measuring.read_task()
    measuring.keep_freed_memory()
    sessions = measuring.whole_sessions(task) - 1
    module = module_of(task)
    optimizer = module.configure_optimizers()
    real = torch.ones(B, T, dtype=torch.bool)
    shared = UniformNegativeSamplingTransform(task.items, N)

    def train(i: int) -> int:
        rows = sessions[measuring.batch_rows(i)]
        batch = {
            "feature_tensors": {NAME: rows[:, :T]},
            "padding_mask": real,
            "positive_labels": rows[:, 1 : T + 1, None],
            "target_padding_mask": real[:, :, None],
        }
        if task.mode == "shared":
            batch = shared(batch)
        else:
            # RePlay has no sampler of a draw a session that is not a multinomial over the catalogue a session.
            batch["negative_labels"] = torch.randint(task.items, (B, N))
        optimizer.zero_grad()
        loss = module(batch)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        return B

    size = measuring.EVALUATED_AT_A_TIME
    seen = torch.ones(size, T, dtype=torch.bool)

    @torch.no_grad()
    def evaluate(i: int) -> int:
        at = torch.arange(i * size, (i + 1) * size) % len(sessions)
        rows = sessions[at]
        batch = {"feature_tensors": {NAME: rows[:, 1 : T + 1]}, "padding_mask": seen}
        if task.mode == "candidates":
            batch["candidates_to_score"] = torch.cat([rows[:, T + 1 : T + 2], candidates[at]], 1)
            scores = module(batch)["logits"]
            (scores[:, 1:] > scores[:, :1]).sum(1)
        else:
            # As its metrics callback does: the best 20 of the whole catalogue.
            module(batch)["logits"].topk(20, dim=1)
        return size

    if task.measure == "train":
        module.train()
        figures = measuring.clock(train, task.seconds)
        notes = "negatives not kept apart from the session, only from the target"
    else:
        module.eval()
        candidates: Tensor = torch.randint(task.items, (len(sessions), measuring.N_CANDIDATES))
        figures = measuring.clock(evaluate, task.seconds)
        notes = "" if task.mode == "candidates" else "ranks the whole catalogue, best 20"
    measuring.report(figures, notes=notes, packages=("replay-rec", "lightning"))


if __name__ == "__main__":
    main()
