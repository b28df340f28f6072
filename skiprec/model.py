"""The sequence encoder: item indices -> a predicted embedding at each position. Knows tensors only."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from skiprec.encoder_block import Block, DropoutMasks, Sight
from skiprec.linear import applied
from skiprec.schema import PADDING

# B sessions in the batch, T positions, D embedding width.

NO_LEVEL = 4
"""In place of a skip level, 0 to 3, where [MSK] stands for an item: nothing is added there."""

AT_A_TIME = 1 << 20
"""Numbers of a table that are looked at together as it gets its first values."""


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
    skip_input: bool = False
    """Whether a learned embedding of its skip level is added to each input item."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the blocks and the head while training: their matrix products and activations, as torch.autocast casts them.
    Weights, losses, optimiser and evaluation are float32 always. For GPUs: a CPU's fast loops are float32."""

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
        # Left empty for `initialise`: to fill a million rows twice takes a second.
        self.items = nn.Embedding.from_pretrained(torch.empty(rows, config.dim), freeze=False, padding_idx=PADDING)
        self.positions = nn.Embedding.from_pretrained(torch.empty(self.n_positions, config.dim), freeze=False)
        self.dropout = config.dropout
        self.trains_in_bfloat16 = config.precision == "bfloat16"
        # A list, not nn.TransformerEncoder: that copies one layer, so all would start from the same weights.
        self.blocks = nn.ModuleList(
            Block(
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
        # After the others and without a draw, so that those start as they would without it. From 0 it adds nothing at
        # first and is learnt all the same: its gradient is that of the inputs.
        levels = torch.zeros(NO_LEVEL + 1, config.dim)
        self.skip_levels = (
            nn.Embedding.from_pretrained(levels, freeze=False, padding_idx=NO_LEVEL) if config.skip_input else None
        )

    def forward(
        self, items: Int[Tensor, "B T"], lengths: Int[Tensor, " B"], skip_levels: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Predicted embeddings.

        Args:
            items: Input items, real ones first, then padding.
            lengths: How many are real.
            skip_levels: Of the input items, 0 to 3, or NO_LEVEL; read by a model with skip_input alone, which needs it.

        Returns:
            At each position, the embedding of what is expected there (bidirectional) or next (unidirectional).
            At padding, finite numbers without meaning.

        Raises:
            ValueError: If skip levels are needed and missing.
        """
        return self.encode(self.items(items), lengths, skip_levels)

    def encode(
        self,
        vectors: Float[Tensor, "B T D"],
        lengths: Int[Tensor, " B"],
        skip_levels: Int[Tensor, "B T"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Predicted embeddings, from the embeddings of the input items; otherwise as `forward`.

        Args:
            vectors: Embeddings of the input items.
            lengths: As of `forward`.
            skip_levels: As of `forward`.
            generator: What dropout is drawn from, on the model's device; torch's global one if None.
        """
        # Each weight is cast once a step, so there is nothing to cache; what is kept would be lost to a captured step.
        is_on = self.trains_in_bfloat16 and self.training
        with torch.autocast(vectors.device.type, torch.bfloat16, enabled=is_on, cache_enabled=False):
            hidden, sight, masks = self._start(vectors, lengths, skip_levels, generator)
            for block in self.blocks:
                hidden = block(hidden, sight, masks)
            return self._head(self.last_norm(hidden)).to(vectors.dtype)

    def _head(self, hidden: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        product, activation = self.head
        return activation(applied(product, hidden))

    def _start(
        self, vectors: Tensor, lengths: Tensor, skip_levels: Tensor | None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Sight, DropoutMasks]:
        """What the blocks take: skip levels and positions added, and who may look where."""
        T = vectors.shape[1]
        if self.skip_levels is not None:
            if skip_levels is None:
                raise ValueError("the model has skip_input, so it needs the skip levels of its input items, got None")
            vectors = vectors + self.skip_levels(skip_levels.long())
        places = torch.arange(T, device=vectors.device)
        first = (self.n_positions - lengths if self.positions_from_end else torch.zeros_like(lengths))[:, None]
        masks = self._dropout_masks(vectors, generator)
        # Clamped for padding alone, whose numbers nobody reads.
        hidden = masks.drop(vectors + self.positions((first + places).clamp(max=self.n_positions - 1)))
        return hidden, Sight(lengths, self.is_causal), masks

    def _dropout_masks(self, vectors: Float[Tensor, "B T D"], generator: torch.Generator | None) -> DropoutMasks:
        rate = self.dropout if self.training else 0.0
        n = vectors.numel() + sum(block.factors(vectors) for block in self.blocks)
        return DropoutMasks(rate, n, vectors.device, vectors.dtype, generator)

    def next_item(
        self, items: Int[Tensor, "B T"], lengths: Int[Tensor, " B"], skip_levels: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B D"]:
        """Predicted embedding of what follows each session; the bidirectional encoder puts [MSK] there first.

        For serving and evaluation: without dropout in the last block, whatever the mode. Arguments and errors are those
        of `forward`.
        """
        if not self.is_causal:
            rows = torch.arange(items.shape[0], device=items.device)  # `len` would be a constant to torch.export
            items = F.pad(items, (0, 1), value=PADDING)
            items[rows, lengths] = self.mask_index
            if skip_levels is not None:
                skip_levels = F.pad(skip_levels, (0, 1))
                skip_levels[rows, lengths] = NO_LEVEL  # that of the item to come is what nobody knows
            lengths = lengths + 1
        hidden, sight, masks = self._start(self.items(items), lengths, skip_levels)
        for block in self.blocks[:-1]:
            hidden = block(hidden, sight, masks)
        # Of the last block nothing but one position is asked for.
        return self._head(self.last_norm(self.blocks[-1].at(hidden, sight, lengths - 1)))


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
                truncated_normal_(table, std=0.02)
        elif init == "paper":
            # Within +-0.02 a normal of std 1 is uniform to 1 in 5,000.
            for table in embeddings:
                nn.init.uniform_(table, -0.02, 0.02)
            for name, parameter in model.named_parameters():
                if parameter.ndim == 2 and not any(parameter is table for table in embeddings):
                    nn.init.uniform_(parameter, -0.02, 0.02)
                elif name.endswith("bias"):
                    nn.init.zeros_(parameter)
        else:
            for table in embeddings:
                nn.init.normal_(table)
        model.items.weight[PADDING] = 0


def truncated_normal_(table: Float[Tensor, "R D"], std: float) -> None:
    """Fill a table from a normal cut at 2 std, in a fraction of the time that `nn.init.trunc_normal_` takes.

    What falls outside (1 in 22) is drawn again, until nothing does.
    """
    values = table.view(-1)
    values.normal_(0, std)
    # Part by part, in one part's memory: the absolute values of all at once would be another table.
    sizes, places = torch.empty_like(values[:AT_A_TIME]), []
    for start in range(0, len(values), AT_A_TIME):
        part = values[start : start + AT_A_TIME]
        places.append(start + (torch.abs(part, out=sizes[: len(part)]) > 2 * std).nonzero().squeeze(1))
    outside = torch.cat(places)
    while len(outside):
        again = torch.empty(len(outside), dtype=table.dtype).normal_(0, std)
        values[outside] = again
        outside = outside[again.abs() > 2 * std]


def position_mask(lengths: Int[Tensor, " B"], width: int) -> Bool[Tensor, "B {width}"]:
    """True where a position is real, for sessions whose real positions come first."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]
