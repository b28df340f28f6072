"""The fused sampled softmax against the plain one and autograd: its value, and all its gradients."""

import itertools
from dataclasses import dataclass, replace
from math import exp, log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

import skiprec.row_kernels
import skiprec.sampled_softmax
from skiprec.losses import sampled_softmax_nll
from skiprec.sampled_softmax import SampledSoftmax

B, P, N, D = 7, 5, 6, 4
shared_or_not = pytest.mark.parametrize("shared", [False, True], ids=["session", "shared"])


@dataclass(frozen=True)
class Case:
    """What the loss is computed from."""

    predicted: Tensor
    target: Tensor
    negatives: Tensor
    position_mask: Tensor
    negative_mask: Tensor | None = None
    scale: float = 1.0
    weight: Tensor | None = None
    own: Tensor | None = None

    @property
    def position_weight(self) -> Tensor:
        """As the fused form takes it."""
        mask = self.position_mask.to(self.predicted.dtype)
        return mask if self.weight is None else mask * self.weight

    def rows(self, order: Tensor) -> "Case":
        """The same sessions in another order, or some of them."""
        shared = len(self.negatives) == 1
        return Case(
            self.predicted[order],
            self.target[order],
            self.negatives if shared else self.negatives[order],
            self.position_mask[order],
            None if self.negative_mask is None else self.negative_mask[order],
            self.scale,
            None if self.weight is None else self.weight[order],
            None if self.own is None else self.own[order],
        )


@dataclass(frozen=True)
class Result:
    loss: Tensor
    nll: Tensor
    by_predicted: Tensor
    by_target: Tensor
    by_negatives: Tensor

    def all(self) -> tuple[Tensor, ...]:
        return self.loss, self.nll, self.by_predicted, self.by_target, self.by_negatives


def case(
    *, shared: bool, seed: int = 1, b: int = B, p: int = P, n: int = N, masked: bool = True, dtype=torch.float64, **rest
) -> Case:
    """Random numbers. Masks leave about two thirds; with four sessions or more, all negatives of one are masked."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    negative_mask = torch.rand(b, n, generator=g) < 0.6
    if b > 3:
        negative_mask[3] = False
    position_mask = torch.rand(b, p, generator=g) < 0.7
    position_mask[0, 0] = True
    negatives = normal(1 if shared else b, n, D)
    mask = negative_mask if masked else None
    return Case(normal(b, p, D), normal(b, p, D), negatives, position_mask, mask, **rest)


def fused(c: Case) -> Result:
    """By the fused form. What it fills is full of nan before; what it is given stays as it was."""
    predicted, target = c.predicted.clone().requires_grad_(), c.target.clone().requires_grad_()
    negatives, filled = c.negatives.clone(), torch.full_like(c.negatives, torch.nan)
    scale = torch.tensor(c.scale, dtype=predicted.dtype)
    mask = None if c.negative_mask is None else c.negative_mask.clone()
    loss, nll = SampledSoftmax.apply(predicted, target, negatives, filled, c.position_weight, mask, c.own, scale)
    assert not nll.requires_grad
    loss.backward()
    assert torch.equal(predicted, c.predicted)
    assert torch.equal(target, c.target)
    assert torch.equal(negatives, c.negatives)
    assert mask is None or torch.equal(mask, c.negative_mask)
    return Result(loss.detach(), nll, predicted.grad, target.grad, filled)


def plain(c: Case) -> Result:
    """By `sampled_softmax_nll` in float64 and autograd."""
    leaves = [x.double().clone().requires_grad_() for x in (c.predicted, c.target, c.negatives)]
    predicted, target, negatives = leaves
    negatives = negatives.expand(len(predicted), -1, -1)
    nll = sampled_softmax_nll(
        predicted,
        target,
        negatives,
        position_mask=c.position_mask,
        negative_mask=c.negative_mask,
        position_weight=None if c.weight is None else c.weight.double(),
    )
    loss = c.scale * nll
    loss.backward()
    return Result(loss.detach(), nll.detach(), *(leaf.grad for leaf in leaves))


def agree(actual: Result, expected: Result, *, rtol: float = 0, atol: float = 1e-12) -> None:
    """Every number of either."""
    for a, b in zip(actual.all(), expected.all(), strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a.double(), b, rtol=rtol, atol=max(atol, rtol * b.abs().max().item()))


def in_chunks_of(monkeypatch, sessions: int, c: Case) -> None:
    """Make room for so many sessions at once: their scores, and negatives of their own."""
    b, p, _ = c.predicted.shape
    draws, n, d = c.negatives.shape
    floats = n * p + (n * d if draws == b else 0)
    room = sessions * floats * c.predicted.element_size()
    monkeypatch.setattr(skiprec.sampled_softmax, "CHUNK_BYTES", {"cpu": room, "cuda": room})


@shared_or_not
@pytest.mark.parametrize("masked", [False, True], ids=["all real", "some masked"])
@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 2.0])
def test_it_is_the_plain_loss_with_autograds_gradients(shared, masked, scale):
    c = case(shared=shared, masked=masked, scale=scale)
    expected = plain(c)
    agree(fused(c), expected)
    assert expected.nll > 0.1
    assert all((g != 0).any() == (scale > 0) for g in expected.all()[2:])


@shared_or_not
@pytest.mark.parametrize("masked", [False, True], ids=["all real", "some masked"])
def test_in_float32_it_is_so_to_its_rounding(shared, masked):
    c = case(shared=shared, masked=masked, b=20, p=11, n=30, dtype=torch.float32, scale=0.7)
    actual = fused(c)
    assert {x.dtype for x in actual.all()} == {torch.float32}
    agree(actual, plain(c), rtol=1e-5, atol=0)


def weights(seed: int = 1) -> Tensor:
    """Some of them 0, none of the others alike."""
    w = torch.rand(B, P, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return w * (w > 0.3)


@shared_or_not
@pytest.mark.parametrize("sessions", [1, 3, 8])
def test_positions_weigh_what_they_are_said_to(monkeypatch, shared, sessions):
    """In the mean and in all gradients; only the weights' ratio counts, however small they are."""
    c = case(shared=shared, scale=0.3, weight=weights())
    in_chunks_of(monkeypatch, sessions, c)
    expected = plain(c)
    agree(fused(c), expected)
    small = replace(c, weight=c.weight / 1000)
    agree(fused(small), expected)
    agree(plain(small), expected)
    assert (expected.nll - plain(replace(c, weight=None)).nll).abs() > 1e-3


@shared_or_not
def test_weights_of_1_are_no_weights(shared):
    c = case(shared=shared, dtype=torch.float32)
    with_weights = fused(replace(c, weight=torch.ones(B, P)))
    assert all(torch.equal(a, b) for a, b in zip(with_weights.all(), fused(c).all(), strict=True))


def full_case(seed: int, b: int, p: int, n: int, **rest) -> tuple[Case, Tensor]:
    """Every position's target is one of the shared negatives."""
    c = case(shared=True, seed=seed, b=b, p=p, n=n, masked=False, **rest)
    own = torch.randint(n, (b, p), generator=torch.Generator().manual_seed(seed))
    return replace(c, target=c.negatives[0, own], own=own), own


def cross_entropy(c: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient of the predictions and of the classes, by torch and autograd over the whole matrix."""
    predicted, classes = (x.clone().requires_grad_() for x in (c.predicted, c.negatives[0]))
    losses = torch.nn.functional.cross_entropy((predicted @ classes.T).flatten(0, 1), c.own.flatten(), reduction="none")
    weight = c.position_weight.flatten()
    loss = (losses * weight).sum() / weight.sum().clamp(min=1e-300)
    (c.scale * loss).backward()
    return loss.detach(), predicted.grad, classes.grad


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    b=st.integers(1, 6),
    p=st.integers(1, 6),
    n=st.integers(1, 12),
    sessions=st.sampled_from([1, 2, 4]),
    weighted=st.booleans(),
)
def test_with_the_target_among_shared_negatives_it_is_torchs_cross_entropy(seed, b, p, n, sessions, weighted):
    """A target's gradient comes in two parts, as a target and as a negative of the other positions."""
    c, own = full_case(seed, b, p, n, scale=0.7)
    if weighted:
        c = replace(
            c, weight=0.1 + torch.rand(b, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        )
    with pytest.MonkeyPatch.context() as monkeypatch:
        in_chunks_of(monkeypatch, sessions, c)
        result = fused(c)
    loss, by_predicted, by_classes = cross_entropy(c)
    total = result.by_negatives[0].index_add(0, own.flatten(), result.by_target.flatten(0, 1))
    assert torch.allclose(result.nll, loss, rtol=0, atol=1e-12)
    assert torch.allclose(result.by_predicted, by_predicted, rtol=0, atol=1e-12)
    assert torch.allclose(total, by_classes, rtol=0, atol=1e-12)


def test_the_scores_of_a_whole_catalogue_are_never_there_at_once(monkeypatch):
    """50 sessions of 10 positions and 5,000 items of width 4: a chunk has as many scores as the table has numbers."""
    c, _ = full_case(1, 50, 10, 5000)
    monkeypatch.setattr(skiprec.sampled_softmax, "CHUNK_BYTES", {"cpu": 1000, "cuda": 1000})
    sizes, real = [], skiprec.sampled_softmax.chunk_loss
    monkeypatch.setattr(
        skiprec.sampled_softmax,
        "chunk_loss",
        lambda predicted, *args, **options: sizes.append(len(predicted)) or real(predicted, *args, **options),
    )
    fused(c)
    assert sizes == [1] * 50
    sizes.clear()
    monkeypatch.setattr(skiprec.sampled_softmax, "CHUNK_BYTES", {"cpu": 1000, "cuda": 1000})
    fused(
        replace(
            c,
            predicted=c.predicted[:, :1],
            target=c.target[:, :1],
            own=c.own[:, :1],
            position_mask=c.position_mask[:, :1],
        )
    )
    assert sizes == [4] * 12 + [2]


def test_by_hand_one_session_one_position_one_negative():
    """Scores 2 * 3 = 6 for the target and 2 * 5 = 10 for the negative, which has the share 1 / (1 + e^-4)."""
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    c = Case(2 * one, 3 * one, 5 * one, torch.ones(1, 1, dtype=torch.bool), scale=0.5)
    share = 1 / (1 + exp(-4))
    result = fused(c)
    assert result.nll.item() == pytest.approx(log(1 + exp(4)), rel=1e-14)
    assert result.loss.item() == pytest.approx(log(1 + exp(4)) / 2, rel=1e-14)
    assert result.by_predicted.item() == pytest.approx(share * (5 - 3) / 2, rel=1e-14)
    assert result.by_target.item() == pytest.approx(-share * 2 / 2, rel=1e-14)
    assert result.by_negatives.item() == pytest.approx(share * 2 / 2, rel=1e-14)


UNEVEN = [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("masked", [False, True], ids=["all real", "some masked"])
@pytest.mark.parametrize("sessions", UNEVEN)
@shared_or_not
def test_how_the_batch_is_cut_changes_nothing(monkeypatch, shared, sessions, masked):
    c = case(shared=shared, masked=masked, scale=0.3)
    in_chunks_of(monkeypatch, sessions, c)
    agree(fused(c), plain(c))


def test_a_batch_that_leaves_one_session_to_the_last_chunk_is_right_as_it_comes():
    """28 sessions of 19 positions and 1,000 shared negatives: 27 fill a chunk."""
    c = case(shared=True, b=28, p=19, n=1000, dtype=torch.float32)
    agree(fused(c), plain(c), rtol=1e-5, atol=0)


@shared_or_not
def test_a_chunk_holds_a_session_at_least(monkeypatch, shared):
    """However many negatives there are."""
    c = case(shared=shared, b=1)
    monkeypatch.setattr(skiprec.sampled_softmax, "CHUNK_BYTES", {"cpu": 1, "cuda": 1})
    agree(fused(c), plain(c))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    order=st.permutations(range(B)),
    shared=st.booleans(),
    masked=st.booleans(),
    sessions=st.sampled_from([1, 4, 5, 7]),
)
def test_the_order_of_sessions_does_not_matter(seed, order, shared, masked, sessions):
    c = case(shared=shared, seed=seed, masked=masked)
    order = torch.tensor(order)
    with pytest.MonkeyPatch.context() as monkeypatch:
        in_chunks_of(monkeypatch, sessions, c)
        straight, mixed = fused(c), fused(c.rows(order))
    by_negatives = straight.by_negatives if shared else straight.by_negatives[order]
    expected = replace(
        straight,
        by_predicted=straight.by_predicted[order],
        by_target=straight.by_target[order],
        by_negatives=by_negatives,
    )
    agree(mixed, expected)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    b=st.integers(1, 6),
    p=st.integers(1, 6),
    n=st.integers(1, 6),
    shared=st.booleans(),
    masked=st.booleans(),
    scale=st.sampled_from([0.0, 0.3, 2.0]),
)
def test_it_is_the_plain_loss_whatever_the_shape(seed, b, p, n, shared, masked, scale):
    c = case(shared=shared, seed=seed, b=b, p=p, n=n, masked=masked, scale=scale)
    agree(fused(c), plain(c))


@pytest.mark.parametrize("masked", [False, True])
def test_of_a_single_session_a_shared_draw_is_its_own(masked):
    c = case(shared=True, b=1, masked=masked)
    expected = plain(c)
    agree(fused(c), expected)
    assert expected.by_negatives.any()


@shared_or_not
def test_a_masked_negative_is_as_if_absent(shared):
    """The batch with the first four alone; a masked draw gets no gradient, whatever it is."""
    c = case(shared=shared, masked=False)
    mask = torch.tensor([True] * 4 + [False] * 2).expand(B, -1)
    c.negatives[:, 4:] = 1e3
    few, all_of_them = fused(replace(c, negatives=c.negatives[:, :4])), fused(replace(c, negative_mask=mask))
    assert not all_of_them.by_negatives[:, 4:].any()
    agree(replace(all_of_them, by_negatives=all_of_them.by_negatives[:, :4]), few)


@shared_or_not
def test_where_all_negatives_are_masked_nothing_is_to_be_learnt(shared):
    """The target is sure: loss 0, gradient 0."""
    c = replace(case(shared=shared), negative_mask=torch.zeros(B, N, dtype=torch.bool))
    assert all((x == 0).all() for x in fused(c).all())


@shared_or_not
def test_a_draw_masked_for_one_session_still_counts_for_the_others(shared):
    c = replace(case(shared=shared), position_mask=torch.ones(B, P, dtype=torch.bool))
    mask = torch.ones(B, N, dtype=torch.bool)
    mask[2, 1] = False
    result = fused(replace(c, negative_mask=mask))
    assert result.by_negatives[0 if shared else 1, 1].any()
    assert shared or not result.by_negatives[2, 1].any()
    agree(result, plain(replace(c, negative_mask=mask)))


@shared_or_not
def test_a_batch_without_a_target_has_loss_and_gradients_of_0(shared):
    c = replace(case(shared=shared), position_mask=torch.zeros(B, P, dtype=torch.bool))
    assert all((x == 0).all() for x in fused(c).all())


@shared_or_not
def test_positions_without_a_target_get_no_gradient_and_are_not_in_the_mean(shared):
    c = case(shared=shared)
    result = fused(c)
    assert not result.by_predicted[~c.position_mask].any()
    assert not result.by_target[~c.position_mask].any()
    louder = torch.where(c.position_mask[..., None], c.predicted, 7 * c.predicted)
    agree(fused(replace(c, predicted=louder)), result)


@shared_or_not
def test_a_session_without_targets_does_not_reach_its_negatives(shared):
    c = case(shared=shared, masked=False)
    c.position_mask[2] = False
    others = torch.tensor([0, 1, 3, 4, 5, 6])
    result, without = fused(c), fused(c.rows(others))
    by_negatives = result.by_negatives if shared else result.by_negatives[others]
    assert shared or not result.by_negatives[2].any()
    assert torch.allclose(by_negatives, without.by_negatives, rtol=0, atol=1e-14)
    assert torch.allclose(result.nll, without.nll, rtol=0, atol=1e-14)


@shared_or_not
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_extreme_scores_are_finite_and_right(shared, dtype):
    """A target at -10,000 against a negative at 10,000 and the other way round.

    In the first session the negative has it all: loss 20,000 and the gradient of a plain difference. In the second the
    target has it all: loss and gradient 0.
    """
    predicted = torch.tensor([[[100.0, 0.0]], [[-100.0, 0.0]]], dtype=dtype)
    target = torch.tensor([[[-100.0, 1.0]], [[-100.0, 1.0]]], dtype=dtype)
    negatives = torch.tensor([[[100.0, 2.0], [0.0, 3.0]]], dtype=dtype).expand(1 if shared else 2, -1, -1)
    result = fused(Case(predicted, target, negatives.clone(), torch.ones(2, 1, dtype=torch.bool)))
    assert result.nll.item() == 10_000
    assert result.by_predicted.tolist() == [[[100.0, 0.5]], [[0.0, 0.0]]]
    assert result.by_target.tolist() == [[[-50.0, 0.0]], [[0.0, 0.0]]]
    first = [[50.0, 0.0], [0.0, 0.0]]
    assert result.by_negatives.tolist() == ([first] if shared else [first, [[0.0, 0.0]] * 2])


@shared_or_not
@pytest.mark.parametrize("size", [30.0, 100.0])
def test_large_scores_of_any_sign_are_the_plain_loss(shared, size):
    c = case(shared=shared)
    c = replace(c, predicted=size * c.predicted, target=size * c.target, negatives=size * c.negatives)
    agree(fused(c), plain(c), rtol=1e-12)


@shared_or_not
def test_equal_scores_share_evenly(shared):
    """All embeddings alike: log(1 + N) at every position."""
    c = case(shared=shared, masked=False)
    alike = replace(c, **{name: torch.ones_like(getattr(c, name)) for name in ("predicted", "target", "negatives")})
    assert fused(alike).nll.item() == pytest.approx(log(1 + N), rel=1e-14)


@shared_or_not
def test_the_gradients_are_those_of_finite_differences(shared):
    c = case(shared=shared, b=4, scale=0.7)
    scale = torch.tensor(c.scale, dtype=torch.float64)

    def loss(predicted, target):
        filled = torch.empty_like(c.negatives)
        return SampledSoftmax.apply(
            predicted, target, c.negatives, filled, c.position_weight, c.negative_mask, c.own, scale
        )[0]

    assert gradcheck(loss, (c.predicted.requires_grad_(), c.target.requires_grad_()))


def test_predictions_and_targets_follow_what_is_made_of_the_loss():
    """The negatives' gradient is written in the forward pass, and cannot."""
    c = case(shared=False, scale=0.3)
    gradients = []
    for factor in (1.0, -5.0):
        leaves = [c.predicted.clone().requires_grad_(), c.target.clone().requires_grad_()]
        filled = torch.empty_like(c.negatives)
        scale = torch.tensor(c.scale, dtype=torch.float64)
        loss, _ = SampledSoftmax.apply(*leaves, c.negatives, filled, c.position_weight, c.negative_mask, c.own, scale)
        (factor * loss).backward()
        gradients.append([leaf.grad for leaf in leaves])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(-5 * one, other, rtol=1e-14)


@shared_or_not
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("in_place", [False, True], ids=["aside", "in the negatives' own memory"])
def test_the_loops_of_the_cpu_are_the_plain_loss(shared, threads, in_place, float32_loops):
    """Of every size of a tile and beside it, with weights that differ, sessions without any, and masks."""
    torch.set_num_threads(threads)
    g = torch.Generator().manual_seed(threads)
    for b, p, n, d in itertools.product([2, 5], [1, 20, 65, 130], [1, 7, 8, 9, 50], [1, 5, 128]):
        predicted, target = torch.randn(2, b, p, d, generator=g)
        negatives = torch.randn(1 if shared else b, n, d, generator=g)
        weight = torch.rand(b, p, generator=g) * (torch.rand(b, p, generator=g) < 0.7)
        weight[1] = 0
        mask = torch.rand(b, n, generator=g) < 0.6 if p != 20 else None
        leaves = [x.clone().requires_grad_() for x in (predicted, target)]
        given = negatives.clone()
        filled = given if in_place else torch.full_like(given, torch.nan)
        loss, nll = SampledSoftmax.apply(*leaves, given, filled, weight, mask, None, torch.tensor(0.7))
        loss.backward()
        expected = plain(Case(predicted, target, negatives, weight > 0, mask, 0.7, weight))
        for ours, theirs in zip((nll, *(x.grad for x in leaves), filled), expected.all()[1:], strict=True):
            # Products of 128 random numbers are some tens, and their rounding shows in small shares.
            torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-4 * max(0.05, theirs.abs().max().item()))
    assert set(float32_loops) == {"shared_softmax" if shared else "session_softmax"}


@shared_or_not
def test_what_the_loops_do_not_know_goes_without_them(shared, float32_loops):
    """Own targets among the negatives, rows that have gaps, float64."""
    g = torch.Generator().manual_seed(1)
    c = case(shared=True, n=9, masked=False, dtype=torch.float32)
    own = torch.randint(9, (B, P), generator=g)
    agree(fused(replace(c, own=own)), fused(replace(c, own=own, **doubled(c))), atol=1e-5)
    gaps = torch.randn(1 if shared else B, N, 2 * D, generator=g)[..., ::2]
    for negatives, filled in ((gaps, torch.empty_like(gaps.contiguous())), (gaps.contiguous(), torch.empty_like(gaps))):
        c = replace(case(shared=shared, masked=False, dtype=torch.float32), negatives=negatives)
        if filled.is_contiguous() is negatives.is_contiguous():
            filled = torch.empty(*gaps.shape[:2], 2 * D)[..., ::2]
        SampledSoftmax.apply(c.predicted, c.target, negatives, filled, c.position_weight, None, None, torch.ones(()))
        assert torch.allclose(filled.double(), plain(c).by_negatives, atol=1e-5)
    fused(case(shared=shared))
    assert float32_loops == []


def doubled(c: Case) -> dict[str, Tensor]:
    """The same numbers in float64."""
    return {name: getattr(c, name).double() for name in ("predicted", "target", "negatives")}


@pytest.fixture
def float32_loops(monkeypatch):
    """Which loops were called; threads are as before afterwards."""
    called, real = [], skiprec.row_kernels.over_rows
    monkeypatch.setattr(
        skiprec.row_kernels,
        "over_rows",
        lambda kernel, *rest, **options: called.append(kernel.__name__) or real(kernel, *rest, **options),
    )
    yield called
    torch.set_num_threads(1)
