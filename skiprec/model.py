"""The sequence encoder: item indices -> a predicted embedding at each position. Knows tensors only."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from skiprec.schema import PADDING

# B sessions in the batch, T positions, D embedding width.


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The encoder's shape (Seshadri & Knees 2023, arXiv:2309.11623, section 3.2)."""

    architecture: Literal["unidirectional", "bidirectional"] = "unidirectional"
    """Causal attention as in SASRec, or attention both ways with masked positions as in BERT4Rec."""
    dim: int = 128
    """Width of embeddings and hidden states."""
    n_layers: int = 2
    """Transformer encoder blocks."""
    n_heads: int = 8
    """Attention heads; divides dim."""
    feed_forward: int = 128
    """Hidden width of each block's feed-forward part."""
    activation: Literal["gelu", "relu"] = "gelu"
    """Of the feed-forward part."""
    norm: Literal["pre", "post"] = "pre"
    """LayerNorm before each part, with one more after the last block; or after each part."""
    dropout: float = 0.2
    """Share of activations dropped in the blocks."""
    positions: Literal["from_end", "from_start"] = "from_end"
    """Where positions are counted from. From the end, the last input item always has the last position."""
    init: Literal["normal", "paper", "torch"] = "normal"
    """Initial weights: see `initialise`."""

    def __post_init__(self) -> None:
        for name in ("dim", "n_layers", "n_heads", "feed_forward"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.dim % self.n_heads:
            raise ValueError(f"n_heads ({self.n_heads}) must divide dim ({self.dim})")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, expected 0 or more and less than 1")


class SequenceEncoder(nn.Module):
    """Item and position embeddings, transformer blocks, then Linear(D, D) + GELU.

    The score of an item at a position is the inner product of the output with the item's embedding.

    Args:
        config: The shape.
        n_items: Items in the catalogue; their indices are 1 to n_items.
        max_length: Longest session. The bidirectional encoder has one position more, for [MSK] after a full session.
    """

    def __init__(self, config: ModelConfig, n_items: int, max_length: int) -> None:
        super().__init__()
        self.is_causal = config.architecture == "unidirectional"
        self.positions_from_end = config.positions == "from_end"
        self.n_items = n_items
        self.mask_index = n_items + 1  # [MSK]: one extra row of the bidirectional table
        self.n_positions = max_length + (not self.is_causal)
        rows = 1 + n_items + (not self.is_causal)
        self.items = nn.Embedding(rows, config.dim, padding_idx=PADDING)
        self.positions = nn.Embedding(self.n_positions, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        # A list, not nn.TransformerEncoder: that copies one layer, so all would start from the same weights.
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.dim,
                config.n_heads,
                config.feed_forward,
                config.dropout,
                config.activation,
                batch_first=True,
                norm_first=config.norm == "pre",
            )
            for _ in range(config.n_layers)
        )
        self.last_norm = nn.LayerNorm(config.dim) if config.norm == "pre" else nn.Identity()
        self.head = nn.Sequential(nn.Linear(config.dim, config.dim), nn.GELU())
        initialise(self, config.init)

    def forward(self, items: Int[Tensor, "B T"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B T D"]:
        """Predicted embeddings.

        Args:
            items: Input items, real ones first, then padding.
            lengths: How many are real.

        Returns:
            At each position, the embedding of what is expected there (bidirectional) or next (unidirectional).
            At padding, finite numbers without meaning.
        """
        T = items.shape[1]
        places = torch.arange(T, device=items.device)
        is_padding = places >= lengths[:, None]  # (B, T)
        first = (self.n_positions - lengths if self.positions_from_end else torch.zeros_like(lengths))[:, None]
        # Clamped for padding alone, whose numbers nobody reads.
        hidden = self.dropout(self.items(items) + self.positions((first + places).clamp(max=self.n_positions - 1)))
        causal = torch.ones(T, T, dtype=torch.bool, device=items.device).triu(1) if self.is_causal else None
        # True is "not attended to" in both masks. Padding comes last, so every row keeps a real key to look at.
        for block in self.blocks:
            hidden = block(hidden, src_mask=causal, src_key_padding_mask=is_padding)
        return self.head(self.last_norm(hidden))

    def next_item(self, items: Int[Tensor, "B T"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
        """Predicted embedding of what follows each session; the bidirectional encoder puts [MSK] there first."""
        rows = torch.arange(len(items), device=items.device)
        if self.is_causal:
            return self(items, lengths)[rows, lengths - 1]
        with_mask = torch.cat([items, items.new_full((len(items), 1), PADDING)], dim=1)
        with_mask[rows, lengths] = self.mask_index
        return self(with_mask, lengths + 1)[rows, lengths]


def initialise(model: SequenceEncoder, init: str) -> None:
    """Set the initial weights, from torch's global generator.

    Args:
        model: Changed in place.
        init: "normal": embeddings truncated normal, std 0.02, cut at 2 std; other layers as PyTorch makes them.
            "paper": embeddings and weight matrices truncated normal, std 1 cut at +-0.02; biases 0; LayerNorm as it
            is (section 3.2). "torch": as PyTorch makes them, embeddings N(0, 1).
    """
    embeddings = (model.items.weight, model.positions.weight)
    with torch.no_grad():
        if init == "normal":
            for table in embeddings:
                nn.init.trunc_normal_(table, std=0.02, a=-0.04, b=0.04)
        elif init == "paper":
            for table in embeddings:
                nn.init.trunc_normal_(table, std=1.0, a=-0.02, b=0.02)
            for name, parameter in model.named_parameters():
                if parameter.ndim == 2 and not any(parameter is table for table in embeddings):
                    nn.init.trunc_normal_(parameter, std=1.0, a=-0.02, b=0.02)
                elif name.endswith("bias"):
                    nn.init.zeros_(parameter)
        model.items.weight[PADDING] = 0


def position_mask(lengths: Int[Tensor, " B"], width: int) -> Bool[Tensor, "B {width}"]:
    """True where a position is real, for sessions whose real positions come first."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]
