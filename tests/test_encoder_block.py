"""An encoder block against PyTorch's own: its attention, its dropout, and the loops that train it on the CPU."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck

import skiprec.encoder_block
import skiprec.row_kernels
from skiprec.block_kernels import gelu, score_columns
from skiprec.encoder_block import Attention, Block, DropoutMasks, Sight, random_words
from skiprec.seeds import counter_bits

LENGTHS = torch.tensor([6, 3, 1])
REAL = torch.arange(6) < LENGTHS[:, None]


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=1e-10)


BLOCK = {"d_model": 12, "nhead": 3, "dim_feedforward": 10, "batch_first": True}
block_variants = pytest.mark.parametrize(
    ("norm_first", "causal", "padded", "activation"),
    [
        (norm_first, causal, padded, activation)
        for norm_first in (True, False)
        for causal, padded in ((True, False), (False, True), (True, True))
        for activation in ("gelu", "relu")
    ],
)


def attention_bias(lengths: torch.Tensor, T: int, n_heads: int, *, causal: bool, padded: bool) -> torch.Tensor:
    """-inf where a position may not look, number by number: (1, T, T) where all sessions are alike."""
    sessions = lengths.tolist() if padded else [T]
    bias = torch.zeros(len(sessions) * n_heads, T, T, dtype=torch.float64)
    for b, length in enumerate(sessions):
        for query in range(T):
            for key in range(T):
                if key >= length or (causal and key > query):
                    bias[b * n_heads : (b + 1) * n_heads, query, key] = -torch.inf
    return bias if padded else bias[:1]


def random_parameters(module: nn.Module) -> None:
    """Biases and norms too, which start as 0 and 1."""
    torch.manual_seed(3)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)


@block_variants
@pytest.mark.parametrize("mode", ["eval", "train without dropout"])
def test_a_block_is_pytorchs_encoder_layer(norm_first, causal, padded, activation, mode):
    """With the same weights: its output, and the gradients of its input and of every parameter."""
    dropout = 0.3 if mode == "eval" else 0.0
    settings = BLOCK | {"dropout": dropout, "activation": activation, "norm_first": norm_first}
    ours, theirs = Block(**settings).double(), nn.TransformerEncoderLayer(**settings).double()
    random_parameters(ours)
    theirs.load_state_dict(ours.state_dict())
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    for block in (ours, theirs):
        block.train(mode != "eval")
    hidden = torch.randn(3, 6, 12, dtype=torch.float64)
    bias = attention_bias(LENGTHS, 6, 3, causal=causal, padded=padded)
    their_mask = {"src_mask": bias.reshape(-1, 6, 6) if padded else bias[0]}
    sight = Sight(LENGTHS if padded else torch.full((3,), 6), causal)
    real = REAL if padded else torch.ones_like(REAL)
    pull = torch.randn(3, 6, 12, dtype=torch.float64) * real[..., None]
    results = []
    for block in (ours, theirs):
        x = hidden.clone().requires_grad_()
        nothing = DropoutMasks(0.0, 0, x.device, x.dtype)
        output = block(x, sight, nothing) if block is ours else block(x, **their_mask)
        (output * pull).sum().backward()
        results.append([output[real], x.grad, *(p.grad for p in block.parameters())])
    for a, b in zip(*results, strict=True):
        assert close(a, b)
        assert a.any()


def plain_attention(projected, bias, mask, n_heads):
    """Softmax of scaled scores, dropped out, times values; head by head."""
    query, key, value = projected.chunk(3, dim=-1)
    B, _, D = query.shape
    dim = D // n_heads
    mixed = []
    for b in range(B):
        heads = []
        for h in range(n_heads):
            q, k, v = (x[b, :, h * dim : (h + 1) * dim] for x in (query, key, value))
            row = b * n_heads + h
            weights = torch.softmax(q @ k.T / dim**0.5 + bias[row % len(bias)], dim=-1)
            heads.append((weights if mask is None else weights * mask[row]) @ v)
        mixed.append(torch.cat(heads, dim=-1))
    return torch.stack(mixed)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize(("B", "T", "n_heads", "dim"), [(3, 6, 2, 4), (3, 6, 4, 1), (3, 6, 1, 5)])
def test_attention_is_the_plain_one_with_autograds_gradient(padded, dropped, B, T, n_heads, dim):
    torch.manual_seed(4)
    projected = torch.randn(B, T, 3 * n_heads * dim, dtype=torch.float64)
    bias = attention_bias(LENGTHS, T, n_heads, causal=True, padded=padded)
    mask = (torch.rand(B * n_heads, T, T) < 0.7).double() / 0.7 if dropped else None
    pull = torch.randn(B, T, n_heads * dim, dtype=torch.float64)
    results = []
    for attention in (Attention.apply, plain_attention):
        x = projected.clone().requires_grad_()
        output = attention(x, bias, mask, n_heads)
        (output * pull).sum().backward()
        results.append((output, x.grad))
    assert close(results[0][0], results[1][0])
    assert close(results[0][1], results[1][1])
    assert results[0][1].any()


@pytest.mark.parametrize("dropped", [False, True])
def test_attentions_gradient_is_that_of_finite_differences(dropped):
    torch.manual_seed(5)
    projected = torch.randn(2, 4, 12, dtype=torch.float64, requires_grad=True)
    bias = attention_bias(torch.tensor([4, 2]), 4, 2, causal=True, padded=True)
    mask = (torch.rand(4, 4, 4) < 0.7).double() / 0.7 if dropped else None
    assert gradcheck(lambda x: Attention.apply(x, bias, mask, 2), (projected,))


def test_attention_takes_gradients_however_they_lie_in_memory():
    """That of a sum is one number seen everywhere; another is a transposed view."""
    torch.manual_seed(6)
    projected = torch.randn(2, 4, 12, dtype=torch.float64)
    bias = torch.zeros(1, 4, 4, dtype=torch.float64)
    weight = torch.randn(2, 4, 4, dtype=torch.float64)
    for loss in (lambda y: y.sum(), lambda y: (y.transpose(1, 2) * weight).sum()):
        gradients = []
        for attention in (Attention.apply, plain_attention):
            x = projected.clone().requires_grad_()
            loss(attention(x, bias, None, 2)).backward()
            gradients.append(x.grad)
        assert close(*gradients)


CPU = torch.device("cpu")


def masks_of(rate: float, n: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> DropoutMasks:
    torch.manual_seed(seed)
    return DropoutMasks(rate, n, CPU, dtype)


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_share_of_dropped_factors_is_the_rate_and_kept_ones_make_up_for_it(rate, dtype):
    """Within five standard deviations of a binomial share; the rate itself is rounded to 1 in 65,536."""
    n = 400_000
    factors = masks_of(rate, n, dtype=dtype).take((n,))
    assert factors.dtype == dtype
    share = (factors == 0).double().mean().item()
    assert abs(share - rate) < 5 * (rate * (1 - rate) / n) ** 0.5 + 2**-17
    kept = factors[factors != 0].double()
    assert torch.allclose(kept, torch.tensor(1 / (1 - rate), dtype=torch.float64), rtol=2**-17 / (1 - rate) + 1e-7)
    assert (kept == kept[0]).all()
    deviation = (rate / (1 - rate) / n) ** 0.5
    assert abs(factors.double().mean().item() - 1) < 5 * deviation


def test_the_rate_and_the_factor_are_those_of_65536ths():
    """0.3 is 19,661 of them, rounded; and of a rate of one of them, 8 million factors tell it from two."""
    kept = masks_of(0.3, 100, dtype=torch.float64).take((100,)).max().item()
    assert kept == pytest.approx(65_536 / (65_536 - 19_661), rel=1e-12)
    n = 8_000_000
    dropped = (masks_of(2**-16, n).take((n,)) == 0).sum().item()
    assert abs(dropped - n / 65_536) < 5 * (n / 65_536) ** 0.5


def test_factors_are_independent_of_their_neighbours_and_of_their_place():
    """Four come from the 64 bits of one draw. Shares of pairs within five standard deviations."""
    n, rate = 400_000, 0.3
    dropped = (masks_of(rate, n).take((n,)) == 0).double()
    for lag in (1, 2, 3, 4):
        both = (dropped[lag:] * dropped[:-lag]).mean().item()
        assert abs(both - rate**2) < 5 * (rate**2 / n) ** 0.5 * 1.5
    for place in range(4):
        share = dropped[place::4].mean().item()
        assert abs(share - rate) < 5 * (rate * (1 - rate) / (n / 4)) ** 0.5


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("n", [0, 1, 5, 1000])
def test_random_words_are_counted_from_one_draw(n, threads, monkeypatch):
    """By SplitMix64 as `seeds` has it in NumPy; the same ones whatever the number of threads."""
    monkeypatch.setattr(skiprec.encoder_block, "WORDS_WORTH_A_THREAD", 10)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(8)
    words = random_words(n, CPU)
    torch.manual_seed(8)
    key = torch.randint(2**62, ()).item()
    assert np.array_equal(words.numpy().view(np.uint64), counter_bits(key, np.arange(n)))
    assert not torch.equal(random_words(9, CPU), random_words(9, CPU))


def test_factors_taken_in_turn_do_not_overlap():
    whole = masks_of(0.5, 100).take((100,))
    masks = masks_of(0.5, 100)
    parts = [masks.take((3, 4)), masks.take((2, 5, 7)), masks.take((18,))]
    assert [part.shape for part in parts] == [(3, 4), (2, 5, 7), (18,)]
    assert torch.equal(torch.cat([part.flatten() for part in parts]), whole)
    assert len(masks.left) == 0


def test_dropping_multiplies_by_the_next_factors():
    hidden = torch.randn(4, 5)
    expected = masks_of(0.4, 40).take((2, 4, 5))
    masks = masks_of(0.4, 40)
    assert torch.equal(masks.drop(hidden), hidden * expected[0])
    assert torch.equal(masks.drop(hidden), hidden * expected[1])


def test_without_dropout_nothing_is_drawn_and_nothing_dropped():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    masks = DropoutMasks(0.0, 100, CPU, torch.float32)
    hidden = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    assert masks.take((3, 4)) is None
    assert masks.drop(hidden) is hidden
    assert torch.equal(torch.get_rng_state(), before)


def test_the_highest_rates_below_1_are_possible():
    """As `ModelConfig` says: 0 or more and less than 1."""
    assert masks_of(0.999999, 8).take((8,)).isfinite().all()


@pytest.mark.parametrize("causal", [False, True])
def test_who_may_look_where(causal):
    """Against a mask that is made number by number."""
    expected = attention_bias(LENGTHS, 6, 2, causal=causal, padded=True)
    sight = Sight(LENGTHS, causal)
    assert torch.equal(sight.bias(6, 2, torch.float64), expected)
    assert sight.bias(6, 2, torch.float64) is sight.bias(6, 2, torch.float64)
    assert torch.equal(sight.bias(6, 1, torch.float32), expected[::2].float())


@pytest.fixture
def loops(monkeypatch):
    """Which compiled loops were called."""
    called, real = [], skiprec.row_kernels.over_rows
    monkeypatch.setattr(
        skiprec.row_kernels,
        "over_rows",
        lambda kernel, *rest, **options: called.append(kernel.__name__) or real(kernel, *rest, **options),
    )
    return called


@pytest.fixture(autouse=True)
def threads_as_before():
    yield
    torch.set_num_threads(1)


def block_of(dim: int, n_heads: int, feed_forward: int, rate: float, activation: str, norm: str) -> Block:
    """In float32, ready to be trained, all its parameters random."""
    torch.manual_seed(3)
    options = {"batch_first": True, "norm_first": norm == "pre"}
    block = Block(dim, n_heads, feed_forward, rate, activation, **options)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.4 / math.sqrt(dim) * 4)
    return block.train()


def factors_of(bits: torch.Tensor, masks: DropoutMasks) -> torch.Tensor:
    """1 / (1 - rate) where bits are no less than the threshold."""
    return torch.where(bits.int() >= masks.threshold, masks.factor, 0.0).double() if bits.numel() else torch.ones(())


def by_hand(block: Block, x: torch.Tensor, lengths: torch.Tensor, causal: bool, masks: DropoutMasks) -> torch.Tensor:
    """A block in float64, dropping what the loops drop: of scores, key by key, all heads' queries beside each other."""
    (B, T, D), H, F_ = x.shape, block.self_attn.num_heads, block.linear1.out_features
    bias = attention_bias(lengths, T, H, causal=causal, padded=True)

    def attend(y):
        W = score_columns(T)
        bits = masks.take_bits((B, T, H * W))
        kept = factors_of(bits, masks)
        mask = None
        if bits.numel():
            mask = kept.view(B, T, H, W)[..., :T].permute(0, 2, 3, 1).reshape(B * H, T, T)  # query by key
        kept = factors_of(masks.take_bits((B, T, D)), masks)
        projected = y @ block.self_attn.in_proj_weight.T + block.self_attn.in_proj_bias
        return block.self_attn.out_proj(plain_attention(projected, bias, mask, H)) * kept

    def feed_forward(y):
        inner_kept = factors_of(masks.take_bits((B, T, F_)), masks)
        kept = factors_of(masks.take_bits((B, T, D)), masks)
        return block.linear2(block.activation(block.linear1(y)) * inner_kept) * kept

    if block.norm_first:
        x = x + attend(block.norm1(x))
        return x + feed_forward(block.norm2(x))
    x = block.norm1(x + attend(x))
    return block.norm2(x + feed_forward(x))


SHAPES = [(12, 3, 10, 6), (128, 8, 128, 20), (9, 1, 5, 17), (24, 2, 70, 33), (6, 6, 1, 1)]


@pytest.mark.parametrize(("dim", "n_heads", "feed_forward", "T"), SHAPES)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize(("activation", "norm"), [("gelu", "pre"), ("relu", "post")])
def test_a_trained_block_is_the_plain_one_with_autograds_gradients(
    dim, n_heads, feed_forward, T, causal, rate, activation, norm, loops
):
    """Values and all gradients by the loops in float32, and by hand and autograd in float64."""
    torch.set_num_threads(2)
    block = block_of(dim, n_heads, feed_forward, rate, activation, norm)
    lengths = torch.tensor([T, max(1, T // 2), 1, T, max(1, T - 1)])
    real = (torch.arange(T) < lengths[:, None])[..., None]
    hidden, pull = torch.randn(5, T, dim), torch.randn(5, T, dim) * real
    results = []
    for is_ours in (True, False):
        of = block if is_ours else block_of(dim, n_heads, feed_forward, rate, activation, norm).double()
        x = hidden.clone().to(torch.float32 if is_ours else torch.float64).requires_grad_()
        torch.manual_seed(5)
        masks = DropoutMasks(rate, block.factors(hidden), hidden.device, x.dtype)
        output = of(x, Sight(lengths, causal), masks) if is_ours else by_hand(of, x, lengths, causal, masks)
        (output * pull.to(x.dtype)).sum().backward()
        results.append([output * real, x.grad, *(p.grad for p in of.parameters())])
    assert {"attend", "feed_forward", "attend_backward", "feed_forward_backward", "sum_products"} <= set(loops)
    for ours, plain in zip(*results, strict=True):
        assert plain.any()
        torch.testing.assert_close(ours.double(), plain, rtol=0, atol=1e-5 * max(1.0, plain.abs().max().item()))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_padding_counts_for_nothing_in_a_trained_block(norm):
    """Whatever stands there, and whatever its gradient is: all real positions and all parameters are the same."""
    block, lengths = block_of(16, 2, 12, 0.0, "gelu", norm), torch.tensor([5, 2, 3])
    real = (torch.arange(5) < lengths[:, None])[..., None]
    torch.manual_seed(1)
    x, pull = torch.randn(3, 5, 16), torch.randn(3, 5, 16) * real
    results = []
    for stands_there in (0.0, 1e3):
        block.zero_grad()
        given = torch.where(real, x, stands_there).requires_grad_()
        output = block(given, Sight(lengths, True), DropoutMasks(0.0, 0, x.device, x.dtype))
        assert output.isfinite().all()
        (output * pull).sum().backward()
        results.append([output * real, given.grad, *(p.grad for p in block.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_session_without_positions_counts_for_nothing_and_one_that_is_too_long_is_cut():
    block = block_of(16, 2, 12, 0.0, "gelu", "pre")
    torch.manual_seed(1)
    x, results = torch.randn(3, 5, 16), []
    for rows, lengths in (([0, 1, 2], [5, 0, 9]), ([0, 2], [5, 5])):
        block.zero_grad()
        given = x[rows].requires_grad_()
        nothing = DropoutMasks(0.0, 0, x.device, x.dtype)
        output = block(given, Sight(torch.tensor(lengths), True), nothing)
        output[[0, -1]].sum().backward()
        results.append([output[[0, -1]], given.grad[[0, -1]], *(p.grad for p in block.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("transposed", ["input", "weights"])
def test_a_trained_block_takes_what_lies_otherwise_in_memory(transposed):
    results = []
    for is_transposed in (False, True):
        block = block_of(16, 2, 16, 0.0, "gelu", "pre")
        torch.manual_seed(1)
        x = torch.randn(3, 16, 5).transpose(1, 2)
        pull = torch.randn(3, 16, 5).transpose(1, 2)
        if not is_transposed:
            x = x.contiguous()
        if is_transposed and transposed == "weights":
            for weight in (block.self_attn.in_proj_weight, block.self_attn.out_proj.weight, block.linear2.weight):
                weight.data = weight.data.t().contiguous().t()
        sight, masks = Sight(torch.tensor([5, 2, 3]), True), DropoutMasks(0.0, 0, x.device, x.dtype)
        given = x.requires_grad_()
        output = block._attend(given, sight, masks) + block._feed_forward(given, sight, masks)
        (output * pull).sum().backward()
        results.append([output, given.grad, *(p.grad for p in block.parameters() if p.grad is not None)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_scores_of_hundreds_are_attended_to():
    """The exponential of the largest alone would be more than a float32 can be."""
    block = block_of(16, 2, 12, 0.0, "gelu", "pre")
    x, sight = 60 * torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(1)), Sight(torch.tensor([6, 4]), True)
    by_loops = block._attend(x, sight, DropoutMasks(0.0, 0, x.device, x.dtype))
    by_torch = block.eval()._attend(x, sight, DropoutMasks(0.0, 0, x.device, x.dtype))
    real = (torch.arange(6) < sight.lengths[:, None])[..., None]
    torch.testing.assert_close(by_loops * real, by_torch * real, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["input", "linear1", "in_proj_weight"])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("rate", [0.0, 0.9])
def test_what_is_not_finite_shows(value, where, activation, rate):
    """At every later position of its session, or at all of them: nothing that is dropped or below 0 hides it."""
    block = block_of(16, 2, 12, rate, activation, "pre")
    torch.manual_seed(1)
    x = torch.randn(2, 6, 16)
    if where == "input":
        x[0, 1] = value
    with torch.no_grad():
        block.linear1.weight[:] += value if where == "linear1" else 0
        block.self_attn.in_proj_weight[:] += value if where == "in_proj_weight" else 0
    masks = DropoutMasks(rate, block.factors(x), x.device, x.dtype)
    output = block(x, Sight(torch.tensor([6, 6]), True), masks)
    assert not output[0, 1:].isfinite().any(1).all()
    assert not output[0, 1].isfinite().all()
    if where == "input":
        assert output[1].isfinite().all()


def test_a_trained_block_is_the_same_with_any_number_of_threads():
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        block, lengths = block_of(32, 4, 40, 0.2, "gelu", "pre"), torch.tensor([9, 4, 1, 7, 9, 2, 9])
        torch.manual_seed(2)
        x = torch.randn(7, 9, 32).requires_grad_()
        masks = DropoutMasks(0.2, block.factors(x), x.device, x.dtype)
        block._attend(x, Sight(lengths, True), masks).square().sum().backward()
        results.append([x.grad, block.self_attn.in_proj_weight.grad, block.self_attn.out_proj.weight.grad])
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("why", ["eval", "no grad", "double"])
def test_what_is_not_trained_is_torchs(why, loops):
    """Their loading takes seconds, which nobody who asks for a recommendation should wait."""
    block, x = block_of(16, 2, 12, 0.0, "gelu", "pre"), torch.randn(3, 5, 16)
    if why == "eval":
        block.eval()
    if why == "double":
        block, x = block.double(), x.double()
    with torch.set_grad_enabled(why != "no grad"):
        block(x, Sight(torch.tensor([5, 2, 3]), True), DropoutMasks(0.0, 0, x.device, x.dtype))
    assert loops == []


def test_what_is_dropped_does_not_depend_on_the_width_of_registers():
    """Each score has bits of its own, in rows of a multiple of 16: what registers of 16, 8 and 4 numbers all divide."""
    assert [score_columns(T) for T in (1, 16, 17, 33)] == [16, 16, 32, 48]


def test_gelu_of_the_loops_is_torchs_and_its_slope_is_autograds():
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64, requires_grad=True)
    F.gelu(x).sum().backward()
    ours = torch.tensor([gelu(np.float32(value)) for value in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(ours[:, 0], F.gelu(x).detach(), rtol=3e-7, atol=3e-7)
    torch.testing.assert_close(ours[:, 1], x.grad, rtol=0, atol=1e-6)
    assert np.isnan(gelu(np.float32(np.nan))).all()


def test_a_second_derivative_of_a_trained_block_is_refused():
    block, x = block_of(16, 2, 12, 0.0, "gelu", "pre"), torch.randn(2, 3, 16, requires_grad=True)
    output = block(x, Sight(torch.tensor([3, 2]), True), DropoutMasks(0.0, 0, x.device, x.dtype))
    (gradient,) = torch.autograd.grad(output.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
