"""One block of the encoder: attention and feed-forward, each with dropout. Knows tensors only.

On the CPU the parts are trained by the loops of `block_kernels`; elsewhere, and wherever nothing is trained, by torch.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int16
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from skiprec.device import has_kernels
from skiprec.linear import applied, linear, summed_products

# B sessions in the batch, T positions, D embedding width, H heads.

WORDS_WORTH_A_THREAD = 1 << 16
"""Fewer random words are made by one thread."""


@dataclass(frozen=True, slots=True)
class Sight:
    """Who may look where: at real positions, which come first, and where it is causal at none that comes later."""

    lengths: Int[Tensor, " B"]
    is_causal: bool
    made: dict[tuple, Tensor] = field(default_factory=dict)
    """Biases, each made once: all blocks ask for the same."""

    def bias(self, T: int, n_heads: int, dtype: torch.dtype) -> Float[Tensor, "BH T T"]:
        """Added to the attention scores of each session and head: -inf where it may not look."""
        if (T, n_heads, dtype) not in self.made:
            device = self.lengths.device
            # Padding comes last, so every row keeps a real key to look at.
            hidden = (torch.arange(T, device=device) >= self.lengths[:, None])[:, None, None, :]  # (B, 1, 1, T)
            if self.is_causal:
                hidden = hidden | torch.ones(T, T, dtype=torch.bool, device=device).triu(1)
            bias = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)
            self.made[T, n_heads, dtype] = bias.expand(-1, n_heads, T, T).reshape(-1, T, T)
        return self.made[T, n_heads, dtype]


class Block(nn.TransformerEncoderLayer):
    """PyTorch's encoder layer: its parameters, its numbers, with fewer copies and cheap dropout masks."""

    def forward(self, hidden: Float[Tensor, "B T D"], sight: Sight, masks: "DropoutMasks") -> Float[Tensor, "B T D"]:
        """Attention and feed-forward, each with its residual.

        Args:
            hidden: What the block before gave.
            sight: Who may look where.
            masks: The dropout masks that are left for this forward pass.
        """
        if self.norm_first:
            hidden = hidden + self._attend(self.norm1(hidden), sight, masks)
            return hidden + self._feed_forward(self.norm2(hidden), sight, masks)
        hidden = self.norm1(hidden + self._attend(hidden, sight, masks))
        return self.norm2(hidden + self._feed_forward(hidden, sight, masks))

    def factors(self, hidden: Float[Tensor, "B T D"]) -> int:
        """How many dropout factors `forward` takes."""
        B, T, D = hidden.shape
        columns = T
        if self._is_by_loops(hidden):
            from skiprec.block_kernels import score_columns

            columns = score_columns(T)
        return B * T * (self.self_attn.num_heads * columns + self.linear1.out_features + 2 * D)

    def at(self, hidden: Float[Tensor, "B T D"], sight: Sight, places: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
        """What `forward` without dropout gives at one place a session, for a fraction of the work.

        Args:
            hidden: What the block before gave.
            sight: As of `forward`.
            places: The position of each session that is asked for.
        """
        B, T, D = hidden.shape
        H = self.self_attn.num_heads
        rows = torch.arange(B, device=hidden.device)
        seen = self.norm1(hidden) if self.norm_first else hidden
        weight, offset = self.self_attn.in_proj_weight, self.self_attn.in_proj_bias
        query = linear(seen[rows, places], weight[:D], offset[:D]).view(B, H, 1, -1)
        key, value = linear(seen, weight[D:], offset[D:]).view(B, T, 2, H, -1).permute(2, 0, 3, 1, 4)
        bias = sight.bias(T, H, hidden.dtype).view(B, H, T, T)[rows, :, places][:, :, None]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).view(B, D)
        nothing = DropoutMasks(0.0, 0, hidden.device, hidden.dtype)
        hidden, attended = hidden[rows, places], applied(self.self_attn.out_proj, mixed)
        if self.norm_first:
            hidden = hidden + attended
            return hidden + self._feed_forward(self.norm2(hidden), None, nothing)
        hidden = self.norm1(hidden + attended)
        return self.norm2(hidden + self._feed_forward(hidden, None, nothing))

    def _is_by_loops(self, hidden: Tensor) -> bool:
        """Whether the loops of `block_kernels` serve: in training alone. They take seconds to load, and know no place
        but all."""
        is_trained = self.training and torch.is_grad_enabled() and not torch.is_autocast_enabled(hidden.device.type)
        return is_trained and hidden.dtype == torch.float32 and has_kernels(hidden.device)

    def _attend(self, hidden: Tensor, sight: Sight, masks: "DropoutMasks") -> Tensor:
        B, T, D = hidden.shape
        attention, H = self.self_attn, self.self_attn.num_heads
        if self._is_by_loops(hidden):
            from skiprec.block_kernels import score_columns

            bits = masks.take_bits((B, T, H * score_columns(T))), masks.take_bits((B, T, D))
            into, out = (attention.in_proj_weight, attention.in_proj_bias), attention.out_proj
            return TrainedAttention.apply(hidden, *into, out.weight, out.bias, sight, H, *bits, masks)
        projected = linear(hidden, attention.in_proj_weight, attention.in_proj_bias)
        mixed = Attention.apply(projected, sight.bias(T, H, projected.dtype), masks.take((B * H, T, T)), H)
        return masks.drop(applied(attention.out_proj, mixed))

    def _feed_forward(self, hidden: Tensor, sight: Sight | None, masks: "DropoutMasks") -> Tensor:
        if sight is not None and self._is_by_loops(hidden):
            B, T, D = hidden.shape
            bits = masks.take_bits((B, T, self.linear1.out_features)), masks.take_bits((B, T, D))
            weights = self.linear1.weight, self.linear1.bias, self.linear2.weight, self.linear2.bias
            is_gelu = self.activation is F.gelu
            return TrainedFeedForward.apply(hidden, *weights, sight.lengths, is_gelu, *bits, masks)
        inner = masks.drop(self.activation(applied(self.linear1, hidden)))
        return masks.drop(applied(self.linear2, inner))


class Attention(torch.autograd.Function):
    """Multi-head attention over short sessions, differentiated by hand.

    For 20 positions all scores fit the cache: flash attention saves nothing, and autograd's copies of the three
    projections cost more than the products.
    """

    @staticmethod
    def forward(
        ctx: Any,
        projected: Float[Tensor, "B T W"],
        bias: Float[Tensor, "_ T T"],
        mask: Float[Tensor, "_ T T"] | None,
        n_heads: int,
    ) -> Float[Tensor, "B T D"]:
        """Softmax of scaled scores, dropped out, times values: all in the dtype of the projections.

        Args:
            ctx: Of autograd.
            projected: Queries, keys and values beside each other: W = 3 D.
            bias: Added to the scores.
            mask: Factors of the dropout, or None.
            n_heads: H; divides D.
        """
        B, T, width = projected.shape
        D, dim = width // 3, width // 3 // n_heads
        query, key, value = projected.view(B, T, 3, n_heads, dim).permute(2, 0, 3, 1, 4).reshape(3, B * n_heads, T, dim)
        scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=dim**-0.5)
        # Autocast makes it float32; the backward pass, which is outside of that, takes what is saved as it is.
        weights = scores.softmax(-1).to(projected.dtype)
        dropped = weights if mask is None else (weights * mask).to(weights.dtype)
        ctx.save_for_backward(query, key, value, weights, dropped, mask)
        return torch.bmm(dropped, value).view(B, n_heads, T, dim).transpose(1, 2).reshape(B, T, D)

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, "B T D"]) -> tuple[Tensor, None, None, None]:
        """Gradient of the projections."""
        query, key, value, weights, dropped, mask = ctx.saved_tensors
        B, T, D = gradient.shape
        dim = query.shape[-1]
        n_heads = D // dim
        gradient = gradient.view(B, T, n_heads, dim).transpose(1, 2).reshape(B * n_heads, T, dim)
        # Query, key and value, as they lie beside each other in the projections.
        out = gradient.new_empty(3, B * n_heads, T, dim)
        torch.bmm(dropped.transpose(1, 2), gradient, out=out[2])
        by_weight = torch.bmm(gradient, value.transpose(1, 2))
        if mask is not None:
            by_weight *= mask
        by_score = torch._softmax_backward_data(by_weight, weights, -1, weights.dtype)
        torch.baddbmm(out[0], by_score, key, beta=0, alpha=dim**-0.5, out=out[0])
        torch.baddbmm(out[1], by_score.transpose(1, 2), query, beta=0, alpha=dim**-0.5, out=out[1])
        return out.view(3, B, n_heads, T, dim).permute(1, 3, 0, 2, 4).reshape(B, T, 3 * D), None, None, None


class TrainedAttention(torch.autograd.Function):
    """Attention with its projections and dropout, by the loops of `block_kernels`: `Block._attend` on the CPU."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "B T D"],
        weight_in: Float[Tensor, "3*D D"],
        bias_in: Float[Tensor, " 3*D"],
        weight_out: Float[Tensor, "D D"],
        bias_out: Float[Tensor, " D"],
        sight: Sight,
        n_heads: int,
        score_bits: Int16[Tensor, "B _ HW"],
        bits: Int16[Tensor, "B _ D"],
        masks: "DropoutMasks",
    ) -> Float[Tensor, "B T D"]:
        """What is added to the block's input. At padding it is 0."""
        from skiprec.block_kernels import attend, score_columns
        from skiprec.row_kernels import over_rows

        (B, T, D), x = x.shape, x.contiguous()
        ctx.lengths, ctx.n_heads = sight.lengths, n_heads
        ctx.dropout = score_bits, bits, masks.threshold, masks.factor
        projected, mixed, out = x.new_empty(B, T, 3 * D), torch.empty_like(x), torch.empty_like(x)
        shares = x.new_empty(B, T, n_heads * score_columns(T))
        weights = weight_in.t().contiguous(), bias_in, weight_out.t().contiguous(), bias_out
        given = x, ctx.lengths, sight.is_causal, n_heads, *weights, *ctx.dropout
        over_rows(attend, B, *given, projected, shares, mixed, out, worth_a_thread=1)
        ctx.save_for_backward(x, weight_in.contiguous(), weight_out.contiguous(), projected, shares, mixed)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "B T D"]) -> tuple[Tensor | None, ...]:
        """Of x, and of weights and biases."""
        from skiprec.block_kernels import attend_backward
        from skiprec.row_kernels import over_rows

        x, weight_in, weight_out, projected, shares, mixed = ctx.saved_tensors
        by_projected, by_out, by_x = torch.empty_like(projected), torch.empty_like(x), torch.empty_like(x)
        given = gradient.contiguous(), ctx.lengths, ctx.n_heads, weight_in, weight_out, *ctx.dropout, projected, shares
        over_rows(attend_backward, len(x), *given, by_projected, by_out, by_x, worth_a_thread=1)
        return by_x, *of_layer(by_projected, x), *of_layer(by_out, mixed), None, None, None, None, None


class TrainedFeedForward(torch.autograd.Function):
    """The feed-forward part with its dropout, by the loops of `block_kernels`: `Block._feed_forward` on the CPU."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "B T D"],
        weight1: Float[Tensor, "F D"],
        bias1: Float[Tensor, " F"],
        weight2: Float[Tensor, "D F"],
        bias2: Float[Tensor, " D"],
        lengths: Int[Tensor, " B"],
        is_gelu: bool,
        inner_bits: Int16[Tensor, "B _ F"],
        bits: Int16[Tensor, "B _ D"],
        masks: "DropoutMasks",
    ) -> Float[Tensor, "B T D"]:
        """What is added to the block's hidden state. At padding it is 0."""
        from skiprec.block_kernels import feed_forward
        from skiprec.row_kernels import over_rows

        x = x.contiguous()
        ctx.lengths, ctx.dropout = lengths, (bits, masks.threshold, masks.factor)
        inner, out = x.new_empty(*x.shape[:2], len(weight1)), torch.empty_like(x)
        slopes = torch.empty_like(inner)
        weights = weight1.t().contiguous(), bias1, weight2.t().contiguous(), bias2
        given = x, lengths, is_gelu, *weights, inner_bits, *ctx.dropout
        over_rows(feed_forward, len(x), *given, inner, slopes, out, worth_a_thread=1)
        ctx.save_for_backward(x, weight1.contiguous(), weight2.contiguous(), inner, slopes)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "B T D"]) -> tuple[Tensor | None, ...]:
        """Of x, and of weights and biases."""
        from skiprec.block_kernels import feed_forward_backward
        from skiprec.row_kernels import over_rows

        x, weight1, weight2, inner, slopes = ctx.saved_tensors
        by_inner, by_out, by_x = torch.empty_like(inner), torch.empty_like(x), torch.empty_like(x)
        given = gradient.contiguous(), ctx.lengths, weight1, weight2, *ctx.dropout, slopes
        over_rows(feed_forward_backward, len(x), *given, by_inner, by_out, by_x, worth_a_thread=1)
        return by_x, *of_layer(by_inner, x), *of_layer(by_out, inner), None, None, None, None, None


def of_layer(by_out: Float[Tensor, "B T O"], x: Float[Tensor, "B T I"]) -> tuple[Tensor, Tensor]:
    """Gradients of a linear layer's weight and bias."""
    by_out = by_out.flatten(0, 1)
    return summed_products(by_out, x.flatten(0, 1)), by_out.sum(0)


class DropoutMasks:
    """All dropout masks of one forward pass, from one draw: a mask a layer costs more than the layer's arithmetic.

    Each factor is 0 or 1 / (1 - rate), by 16 random bits: the rate is exact to 1 in 131,072.

    Args:
        rate: Share that is dropped; with 0 nothing is drawn, and nothing dropped.
        n: Factors in all.
        device: Where they are drawn.
        dtype: Of the factors.
        generator: What they are drawn from, on that device; torch's global one if None.
    """

    def __init__(
        self, rate: float, n: int, device: torch.device, dtype: torch.dtype, generator: torch.Generator | None = None
    ) -> None:
        share = min(round(rate * 2**16), 2**16 - 1)
        self.dtype = dtype
        self.threshold = share - 2**15
        """What bits are no less than is kept."""
        self.factor = 1 / (1 - share / 2**16)
        """Of what is kept."""
        self.left: Int16[Tensor, " L"] | None = None
        if share:
            self.left = random_words(-(-n // 4), device, generator).view(torch.int16)

    def take_bits(self, shape: tuple[int, int, int]) -> Int16[Tensor, "B _ D"]:
        """The next bits; without any rows where nothing is dropped."""
        if self.left is None:
            return torch.empty(shape[0], 0, shape[2], dtype=torch.int16)
        n = math.prod(shape)
        taken, self.left = self.left[:n], self.left[n:]
        return taken.view(shape)

    def take(self, shape: tuple[int, ...]) -> Tensor | None:
        """The next factors, or None where nothing is dropped."""
        if self.left is None:
            return None
        bits = self.take_bits((1, 1, math.prod(shape))).view(shape)
        return torch.ge(bits, self.threshold, out=torch.empty(shape, dtype=self.dtype, device=bits.device)).mul_(
            self.factor
        )

    def drop(self, hidden: Tensor) -> Tensor:
        """Multiply by the next factors."""
        factors = self.take(tuple(hidden.shape))
        return hidden if factors is None else hidden * factors


def random_words(n: int, device: torch.device, generator: torch.Generator | None = None) -> Int[Tensor, " {n}"]:
    """64 random bits each; what they are depends on the generator's state, torch's global one if None."""
    words = torch.empty(n, dtype=torch.int64, device=device)
    if not has_kernels(device):
        return words.random_(-(2**63), None, generator=generator)
    from skiprec.row_kernels import fill_bits, over_rows

    # One draw, and counting from there: torch's own generator gives one number after the other, on one thread.
    key = torch.randint(2**62, (), generator=generator).item()
    over_rows(fill_bits, n, key, words, worth_a_thread=WORDS_WORTH_A_THREAD)
    return words
