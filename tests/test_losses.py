"""The losses as functions of tensors: values by hand, masks, gradients, errors."""

from math import exp, log

import pytest
import slow_reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from skiprec.losses import masked_info_nce, next_positive, sampled_softmax_nll

B, T, N, D = 2, 3, 4, 5


def info_nce_batch(seed: int = 1, by_position: bool = False) -> dict[str, torch.Tensor]:
    """Arguments of masked_info_nce in float64, everything real."""
    g = torch.Generator().manual_seed(seed)
    return {
        "query": torch.randn(B, T, D, generator=g, dtype=torch.float64),
        "positive": torch.randn(B, T, D, generator=g, dtype=torch.float64),
        "negatives": torch.randn(B, N, D, generator=g, dtype=torch.float64),
        "position_mask": torch.ones(B, T, dtype=torch.bool),
        "negative_mask": torch.ones((B, T, N) if by_position else (B, N), dtype=torch.bool),
    }


def softmax_batch(seed: int = 1) -> dict[str, torch.Tensor]:
    """Arguments of sampled_softmax_nll in float64, everything real."""
    b = info_nce_batch(seed)
    return {"predicted": b.pop("query"), "target": b.pop("positive"), **b}


def slow_info_nce(b: dict[str, torch.Tensor], temperature: float) -> float:
    losses = []
    for s in range(B):
        for i in range(T):
            mask = b["negative_mask"][s] if b["negative_mask"].ndim == 2 else b["negative_mask"][s, i]
            real = [n for n, is_real in zip(b["negatives"][s].numpy(), mask.tolist(), strict=True) if is_real]
            if b["position_mask"][s, i] and real:
                query = b["query"][s, i].numpy()
                positive = slow_reference.cosine(query, b["positive"][s, i].numpy()) / temperature
                others = [slow_reference.cosine(query, n) / temperature for n in real]
                losses.append(slow_reference.negative_log_share(positive, others))
    return slow_reference.mean_or_zero(losses)


def slow_nll(b: dict[str, torch.Tensor]) -> float:
    losses = []
    for s in range(B):
        real = [n for n, m in zip(b["negatives"][s].numpy(), b["negative_mask"][s].tolist(), strict=True) if m]
        for i in range(T):
            if b["position_mask"][s, i]:
                y = b["predicted"][s, i].numpy()
                target = slow_reference.inner_product(y, b["target"][s, i].numpy())
                others = [slow_reference.inner_product(y, n) for n in real]
                losses.append(slow_reference.negative_log_share(target, others))
    return slow_reference.mean_or_zero(losses)


class TestMaskedInfoNce:
    def test_by_hand(self):
        """Query along the positive, three negatives at right angles, T = 1: log(1 + 3 e^0 / e^1)."""
        e = torch.eye(4, dtype=torch.float64)
        loss = masked_info_nce(
            7 * e[None, None, 0],
            2 * e[None, None, 0],
            e[None, 1:],
            position_mask=torch.tensor([[True]]),
            negative_mask=torch.ones(1, 3, dtype=torch.bool),
            temperature=1.0,
        )
        assert loss.item() == pytest.approx(log(1 + 3 / exp(1)), abs=1e-12)

    @pytest.mark.parametrize("by_position", [False, True])
    @pytest.mark.parametrize("seed", range(5))
    def test_it_is_the_slow_loop(self, seed, by_position):
        b = info_nce_batch(seed, by_position)
        g = torch.Generator().manual_seed(100 + seed)
        for name in ("position_mask", "negative_mask"):
            b[name] = torch.rand(b[name].shape, generator=g) < 0.5
        assert masked_info_nce(**b, temperature=0.2).item() == pytest.approx(slow_info_nce(b, 0.2), abs=1e-9)

    def test_a_mask_by_session_is_the_same_mask_at_every_position(self):
        b = info_nce_batch()
        b["negative_mask"] = torch.tensor([[True, False, True, False], [False, True, True, True]])
        spread = b | {"negative_mask": b["negative_mask"][:, None].expand(B, T, N)}
        assert masked_info_nce(**b, temperature=0.1) == masked_info_nce(**spread, temperature=0.1)

    def test_positions_as_sessions_of_one_position_give_the_same(self):
        """What design.md says to do with negatives that differ by position."""
        b = info_nce_batch(by_position=True)
        b["negative_mask"][0, 1, :2] = False
        flat = {
            "query": b["query"].reshape(B * T, 1, D),
            "positive": b["positive"].reshape(B * T, 1, D),
            "negatives": b["negatives"].repeat_interleave(T, 0),
            "position_mask": b["position_mask"].reshape(B * T, 1),
            "negative_mask": b["negative_mask"].reshape(B * T, N),
        }
        whole, apart = masked_info_nce(**b, temperature=0.1), masked_info_nce(**flat, temperature=0.1)
        assert whole.item() == pytest.approx(apart.item(), abs=1e-12)

    def test_a_masked_negative_is_as_if_absent(self):
        b = info_nce_batch()
        b["negative_mask"][:, -1] = False
        absent = b | {"negatives": b["negatives"][:, :-1], "negative_mask": b["negative_mask"][:, :-1]}
        loss = masked_info_nce(**b, temperature=0.1)
        assert loss.item() == pytest.approx(masked_info_nce(**absent, temperature=0.1).item(), abs=1e-12)

    def test_a_masked_position_is_as_if_absent(self):
        b = info_nce_batch()
        b["position_mask"][:, -1] = False
        absent = b | {name: b[name][:, :-1] for name in ("query", "positive", "position_mask")}
        loss = masked_info_nce(**b, temperature=0.1)
        assert loss.item() == pytest.approx(masked_info_nce(**absent, temperature=0.1).item(), abs=1e-12)

    def test_a_position_without_a_real_negative_is_not_averaged(self):
        b = info_nce_batch()
        b["negative_mask"][1] = False
        first = {name: value[:1] for name, value in b.items()}
        loss = masked_info_nce(**b, temperature=0.1)
        assert loss.item() == pytest.approx(masked_info_nce(**first, temperature=0.1).item(), abs=1e-12)

    @pytest.mark.parametrize("name", ["position_mask", "negative_mask"])
    def test_nothing_left_to_average_is_exactly_0_with_zero_gradient(self, name):
        b = info_nce_batch()
        b[name][:] = False
        inputs = [b[name].requires_grad_() for name in ("query", "positive", "negatives")]
        loss = masked_info_nce(**b, temperature=0.1)
        loss.backward()
        assert loss.item() == 0
        assert not any(x.grad.any() for x in inputs)

    def test_negatives_of_one_session_do_not_reach_another(self):
        """With session 1 untrained, its negatives get no gradient and session 0's do."""
        b = info_nce_batch()
        b["position_mask"][1] = False
        b["negatives"].requires_grad_()
        masked_info_nce(**b, temperature=0.1).backward()
        assert b["negatives"].grad[0].any()
        assert not b["negatives"].grad[1].any()

    @pytest.mark.parametrize("name", ["query", "positive"])
    def test_a_nan_at_a_masked_position_shows(self, name):
        b = info_nce_batch()
        b["position_mask"][0, 1] = False
        b[name][0, 1, 0] = torch.nan
        assert masked_info_nce(**b, temperature=0.1).isnan()

    @settings(max_examples=50, deadline=None)
    @given(scales=st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3), seed=st.integers(0, 1000))
    def test_the_scale_of_vectors_does_not_matter(self, scales, seed):
        b = info_nce_batch(seed)
        scaled = b | {n: b[n] * c for n, c in zip(("query", "positive", "negatives"), scales, strict=True)}
        loss = masked_info_nce(**b, temperature=0.1)
        assert masked_info_nce(**scaled, temperature=0.1).item() == pytest.approx(loss.item(), rel=1e-9)

    @settings(max_examples=50, deadline=None)
    @given(order=st.permutations(range(N)), sessions=st.permutations(range(B)), seed=st.integers(0, 1000))
    def test_the_order_of_negatives_and_of_sessions_does_not_matter(self, order, sessions, seed):
        b = info_nce_batch(seed)
        b["negative_mask"][0, 1] = b["position_mask"][1, 2] = False
        moved = {name: value[list(sessions)] for name, value in b.items()}
        for name in ("negatives", "negative_mask"):
            moved[name] = moved[name][:, list(order)]
        loss = masked_info_nce(**b, temperature=0.1)
        assert masked_info_nce(**moved, temperature=0.1).item() == pytest.approx(loss.item(), rel=1e-9)

    @pytest.mark.parametrize("by_position", [False, True])
    def test_the_gradient_is_the_slope(self, by_position):
        b = info_nce_batch(2, by_position)
        b["position_mask"][0, 2] = False
        b["negative_mask"][0, 1] = False
        names = ("query", "positive", "negatives")
        rest = {name: value for name, value in b.items() if name not in names}
        assert gradcheck(
            lambda *xs: masked_info_nce(*xs, **rest, temperature=0.3), [b[name].requires_grad_() for name in names]
        )

    @pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
    def test_the_gradient_is_finite_for_vectors_of_any_size(self, size):
        b = {name: value.float() if value.is_floating_point() else value for name, value in info_nce_batch().items()}
        b["negative_mask"][0] = False
        inputs = [b[name].mul_(size).requires_grad_() for name in ("query", "positive", "negatives")]
        masked_info_nce(**b, temperature=0.05).backward()
        assert all(x.grad.isfinite().all() for x in inputs)

    def test_the_inputs_stay_as_they_were(self):
        b = info_nce_batch()
        before = {name: value.clone() for name, value in b.items()}
        masked_info_nce(**b, temperature=0.1)
        assert all(torch.equal(b[name], before[name]) for name in b)

    @pytest.mark.parametrize("temperature", [0.0, -0.1, float("nan")])
    def test_a_temperature_that_is_not_positive_is_refused(self, temperature):
        with pytest.raises(ValueError, match=rf"^temperature must be positive, got {temperature}$"):
            masked_info_nce(**info_nce_batch(), temperature=temperature)


class TestSampledSoftmaxNll:
    def test_by_hand(self):
        """Scores: target <2e_0, 3e_0> = 6, negatives <2e_0, e_0> = 2 and <2e_0, e_1> = 0: log(e^6 + e^2 + 1) - 6."""
        e = torch.eye(3, dtype=torch.float64)
        loss = sampled_softmax_nll(
            2 * e[None, None, 0], 3 * e[None, None, 0], e[None, :2], position_mask=torch.tensor([[True]])
        )
        assert loss.item() == pytest.approx(log(exp(6) + exp(2) + 1) - 6, abs=1e-12)

    @pytest.mark.parametrize("seed", range(5))
    def test_it_is_the_slow_loop(self, seed):
        b = softmax_batch(seed)
        g = torch.Generator().manual_seed(100 + seed)
        for name in ("position_mask", "negative_mask"):
            b[name] = torch.rand(b[name].shape, generator=g) < 0.5
        assert sampled_softmax_nll(**b).item() == pytest.approx(slow_nll(b), abs=1e-9)

    def test_no_mask_is_a_mask_of_real_negatives(self):
        b = softmax_batch()
        assert sampled_softmax_nll(**b) == sampled_softmax_nll(**b | {"negative_mask": None})

    def test_without_a_real_negative_the_target_is_certain(self):
        b = softmax_batch()
        b["negative_mask"][:] = False
        assert sampled_softmax_nll(**b).item() == 0

    def test_a_masked_negative_is_as_if_absent(self):
        b = softmax_batch()
        b["negative_mask"][:, -1] = False
        absent = b | {"negatives": b["negatives"][:, :-1], "negative_mask": b["negative_mask"][:, :-1]}
        assert sampled_softmax_nll(**b).item() == pytest.approx(sampled_softmax_nll(**absent).item(), abs=1e-12)

    def test_a_masked_position_is_as_if_absent(self):
        b = softmax_batch()
        b["position_mask"][:, -1] = False
        absent = b | {name: b[name][:, :-1] for name in ("predicted", "target", "position_mask")}
        assert sampled_softmax_nll(**b).item() == pytest.approx(sampled_softmax_nll(**absent).item(), abs=1e-12)

    def test_nothing_left_to_average_is_exactly_0_with_zero_gradient(self):
        b = softmax_batch()
        b["position_mask"][:] = False
        inputs = [b[name].requires_grad_() for name in ("predicted", "target", "negatives")]
        loss = sampled_softmax_nll(**b)
        loss.backward()
        assert loss.item() == 0
        assert not any(x.grad.any() for x in inputs)

    def test_negatives_of_one_session_do_not_reach_another(self):
        b = softmax_batch()
        b["position_mask"][1] = False
        b["negatives"].requires_grad_()
        sampled_softmax_nll(**b).backward()
        assert b["negatives"].grad[0].any()
        assert not b["negatives"].grad[1].any()

    @pytest.mark.parametrize("name", ["predicted", "target"])
    def test_a_nan_at_a_masked_position_shows(self, name):
        b = softmax_batch()
        b["position_mask"][0, 1] = False
        b[name][0, 1, 0] = torch.nan
        assert sampled_softmax_nll(**b).isnan()

    @settings(max_examples=50, deadline=None)
    @given(order=st.permutations(range(N)), sessions=st.permutations(range(B)), seed=st.integers(0, 1000))
    def test_the_order_of_negatives_and_of_sessions_does_not_matter(self, order, sessions, seed):
        b = softmax_batch(seed)
        b["negative_mask"][0, 1] = b["position_mask"][1, 2] = False
        moved = {name: value[list(sessions)] for name, value in b.items()}
        for name in ("negatives", "negative_mask"):
            moved[name] = moved[name][:, list(order)]
        assert sampled_softmax_nll(**moved).item() == pytest.approx(sampled_softmax_nll(**b).item(), rel=1e-9)

    @pytest.mark.parametrize("is_masked", [False, True])
    def test_the_gradient_is_the_slope(self, is_masked):
        b = softmax_batch(2)
        b["position_mask"][0, 2] = False
        mask = b["negative_mask"]
        mask[0, 1] = False
        mask[1] = False  # nothing but the target
        assert gradcheck(
            lambda *xs: sampled_softmax_nll(
                *xs, position_mask=b["position_mask"], negative_mask=mask if is_masked else None
            ),
            [b[name].requires_grad_() for name in ("predicted", "target", "negatives")],
        )

    def test_large_scores_do_not_overflow(self):
        """Scores of 1e4 and -1e4 in float32: the loss is their difference, or nothing."""
        one = torch.ones(1, 1, 1)
        mask = torch.tensor([[True]])
        assert sampled_softmax_nll(one, -1e4 * one, 1e4 * one, position_mask=mask).item() == 2e4
        assert sampled_softmax_nll(one, 1e4 * one, -1e4 * one, position_mask=mask).item() == 0


class TestNextPositive:
    def test_by_hand(self):
        """heard, skipped, skipped, heard, heard, padding: the next heard is at 3, 3, 3, 4, nowhere, nowhere."""
        skipped = torch.tensor([[False, True, True, False, False, False]])
        mask = torch.tensor([[True, True, True, True, True, False]])
        index, valid = next_positive(skipped, mask)
        assert index.tolist() == [[3, 3, 3, 4, 0, 0]]
        assert valid.tolist() == [[True, True, True, True, False, False]]

    def test_a_position_that_is_not_real_has_no_next_wherever_it_stands(self):
        index, valid = next_positive(torch.tensor([[False, False, False]]), torch.tensor([[False, True, True]]))
        assert (index.tolist(), valid.tolist()) == ([[0, 2, 0]], [[False, True, False]])

    def test_an_item_is_not_its_own_next(self):
        index, valid = next_positive(torch.tensor([[False, True]]), torch.tensor([[True, True]]))
        assert (index.tolist(), valid.tolist()) == ([[0, 0]], [[False, False]])

    @settings(max_examples=200, deadline=None)
    @given(
        rows=st.lists(
            st.tuples(st.lists(st.booleans(), min_size=6, max_size=6), st.integers(0, 6)), min_size=1, max_size=4
        )
    )
    def test_it_is_the_slow_loop(self, rows):
        skipped = torch.tensor([row for row, _ in rows])
        mask = torch.tensor([[i < length for i in range(6)] for _, length in rows])
        index, valid = next_positive(skipped, mask)
        for b, (row, length) in enumerate(rows):
            for i, expected in enumerate(slow_reference.next_positive(row, length)):
                expected = None if i >= length else expected
                assert valid[b, i].item() == (expected is not None)
                assert index[b, i].item() == (expected or 0)
