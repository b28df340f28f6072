"""The drift of rows in steps that they miss, against the sum of Adam's own terms."""

import numpy as np
import pytest
import torch

from skiprec.drift import Drift

MISSED = 300
SIZES = np.geomspace(1e-13, 1e-2, 45)
"""sqrt(v), from far below eps, where eps decides the term, to far above, where it does not count."""
ADAM = {"betas": (0.9, 0.999), "eps": 1e-8}
OTHERS = {"betas": (0.8, 0.99), "eps": 1e-5}
settings = pytest.mark.parametrize("adam", [ADAM, OTHERS], ids=["defaults", "others"])
starts = pytest.mark.parametrize("start", [0, 1, 7, 100, 10_000])


def random_rates(n: int = MISSED) -> np.ndarray:
    """Rates that change tenfold from step to step."""
    return 1e-3 * 10 ** np.random.default_rng(5).uniform(-1, 1, n)


def drift_after(rates: np.ndarray, start: int, adam: dict, dtype: torch.dtype = torch.float64) -> Drift:
    """A flush at step `start`, then these steps: slot s is step start + s, and has missed the steps after it."""
    step = torch.tensor(float(start), dtype=torch.float64)
    drift = Drift(step, **adam, capacity=len(rates), dtype=dtype)
    for rate in rates:
        step += 1  # in place, as the optimizer does
        drift.advance(step, torch.tensor(rate, dtype=torch.float64))
    return drift


def terms(slot: int, rates: np.ndarray, start: int, adam: dict) -> tuple[np.ndarray, np.ndarray]:
    """w_j and b_j of each missed step: Adam's move is w m / (u + eps b), term by term."""
    (beta1, beta2) = adam["betas"]
    j = np.arange(1, len(rates) - slot + 1)
    n = start + slot + j
    b = np.sqrt((1 - beta2**n) / beta2**j)
    return rates[slot:] * b * beta1**j / (1 - beta1**n), b


def moved(slot: int, u: np.ndarray, rates: np.ndarray, start: int, adam: dict) -> np.ndarray:
    """How far a row with m = 1 moves, written from Adam's definition and nothing else."""
    beta1, beta2 = adam["betas"]
    rate = rates[slot:, None]
    j = np.arange(1, len(rate) + 1)[:, None]  # missed steps down, sizes across
    n = start + slot + j
    m_hat = beta1**j / (1 - beta1**n)
    v_hat = beta2**j * u**2 / (1 - beta2**n)
    return (rate * m_hat / (np.sqrt(v_hat) + adam["eps"])).sum(0)


def by_rule(drift: Drift, slot: int, u: np.ndarray) -> np.ndarray:
    """The same by the drift's coefficients."""
    A, B, E, F = drift.coefficients[slot, :4].numpy().astype(np.float64)
    return (A * u + B) / (u**2 + E * u + F)


def error_of_two_points(slot: int, u: np.ndarray, rates: np.ndarray, start: int, adam: dict) -> np.ndarray:
    """The most by which a Gauss rule of two points may err: max f'''' / 4! times the integral of their polynomial.

    The points are eigenvalues of the Jacobi matrix (Golub & Welsch 1969), from Stieltjes' recursion.
    """
    w, b = terms(slot, rates, start, adam)
    mean = (w * b).sum() / w.sum()
    variance = (w * (b - mean) ** 2).sum() / w.sum()
    skew = (w * (b - mean) ** 3).sum() / w.sum() / max(variance, 1e-300)
    points = np.linalg.eigvalsh([[mean, variance**0.5], [variance**0.5, mean + skew]])
    squared = (w * (b - points[0]) ** 2 * (b - points[1]) ** 2).sum()
    return squared * adam["eps"] ** 4 / (u + adam["eps"] * b.min()) ** 5


@settings
@starts
def test_the_rule_is_the_sum_within_the_error_of_a_gauss_rule_of_two_points(start, adam):
    """Over all slots, so 1 to 300 missed steps. The error is positive: the fourth derivative of 1 / (u + eps b) is."""
    rates = random_rates()
    drift = drift_after(rates, start, adam)
    for slot in range(MISSED):
        exact = moved(slot, SIZES, rates, start, adam)
        error = exact - by_rule(drift, slot, SIZES)
        assert (error > -1e-10 * exact).all(), slot
        assert (error < error_of_two_points(slot, SIZES, rates, start, adam) + 1e-10 * exact).all(), slot


@settings
@starts
def test_up_to_two_missed_steps_are_exact(start, adam):
    rates = random_rates()
    drift = drift_after(rates, start, adam)
    for slot in (MISSED - 1, MISSED - 2):
        exact = moved(slot, SIZES, rates, start, adam)
        assert np.abs(by_rule(drift, slot, SIZES) / exact - 1).max() < 1e-11


@settings
@starts
def test_what_missed_nothing_does_not_move(start, adam):
    drift = drift_after(random_rates(), start, adam)
    assert (by_rule(drift, MISSED, SIZES) == 0).all()
    assert drift.coefficients[MISSED].tolist()[4:] == [1, 1]
    assert drift.coefficients.isfinite().all()


def worst_errors(start: int) -> tuple[float, float]:
    """Over slots that a step stands for, and sizes: as a share of the drift, and in learning rates for m = 3 u.

    More than that m cannot be after a gradient: 0.1 / sqrt(0.001) = 3.2 is the first one's share.
    """
    rates = np.full(MISSED, 1e-3)
    drift = drift_after(rates, start, ADAM)
    relative, absolute = 0.0, 0.0
    for slot in range(start == 0, MISSED):
        exact = moved(slot, SIZES, rates, start, ADAM)
        error = np.abs(by_rule(drift, slot, SIZES) - exact)
        relative = max(relative, (error / exact).max())
        absolute = max(absolute, (3 * SIZES * error / 1e-3).max())
    return relative, absolute


@pytest.mark.parametrize(
    ("start", "relative", "absolute"), [(0, 0.04, 0.04), (10, 4e-3, 4e-3), (100, 2e-5, 2e-5), (1000, 1e-7, 1e-7)]
)
def test_the_error_is_small_in_the_first_steps_and_far_smaller_late(start, relative, absolute):
    """At first b grows like the root of the step; later it hardly changes over the steps that matter."""
    errors = worst_errors(start)
    assert errors[0] < relative
    assert errors[1] < absolute


def test_where_eps_does_not_count_the_error_falls_with_its_fourth_power():
    """A tenth of eps: a ten-thousandth of the error."""
    rates = np.full(MISSED, 1e-3)
    u = np.array([1e-4])
    errors = []
    for eps in (1e-5, 1e-6):
        adam = ADAM | {"eps": eps}
        slot = 0
        errors.append(moved(slot, u, rates, 0, adam) - by_rule(drift_after(rates, 0, adam), slot, u))
    assert errors[0] / errors[1] == pytest.approx(1e4, rel=0.5)


def fetched_rows(dtype: torch.dtype, n: int = MISSED + 1) -> torch.Tensor:
    """Weights and moments of n rows: m of either sign and up to what Adam's own moments can be to sqrt(v)."""
    rng = np.random.default_rng(6)
    u = np.tile(SIZES, (n, 1))
    m = u * rng.uniform(-3, 3, u.shape)
    return torch.tensor(np.stack([rng.normal(size=u.shape), m, u**2], axis=1)).to(dtype)


@settings
@starts
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rows_are_moved_by_their_own_slots(dtype, start, adam):
    """In float64 by the sum of terms to rounding; in float32 to its rounding, beside the rule's own error."""
    rates = random_rates()
    drift = drift_after(rates, start, adam, dtype)
    slots = torch.tensor(np.random.default_rng(7).permutation(MISSED + 1), dtype=torch.int32)
    fetched = fetched_rows(dtype)
    fetched[:, 0] = 0  # so that the drift is seen to its own digits
    before = fetched.clone()
    out = torch.full_like(fetched[:, 0], torch.nan)
    decay1, decay2 = drift.apply(fetched, slots, out)
    assert torch.equal(fetched, before)
    m, u = before[:, 1].double().numpy(), before[:, 2].double().sqrt().numpy()
    for i, slot in enumerate(slots.tolist()):
        exact = -m[i] * moved(slot, u[i], rates, start, adam)
        allowed = 1e-12 * np.abs(exact)
        if dtype == torch.float32:
            allowed = 2e-6 * np.abs(exact)
            if slot < MISSED:
                allowed += np.abs(m[i]) * error_of_two_points(slot, u[i], rates, start, adam)
        assert (np.abs(out[i].double().numpy() - exact) <= allowed).all(), slot
    missed = MISSED - slots[:, None].double().numpy()
    (beta1, beta2) = adam["betas"]
    assert np.allclose(decay1, beta1**missed, rtol=1e-6, atol=1e-38)
    assert np.allclose(decay2, beta2**missed, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_filled_may_be_the_rows_themselves(dtype):
    drift = drift_after(random_rates(20), 3, ADAM, dtype)
    slots = torch.arange(21, dtype=torch.int32)
    fetched = fetched_rows(dtype, 21)
    out = torch.empty_like(fetched[:, 0])
    drift.apply(fetched, slots, out)
    drift.apply(fetched, slots, fetched[:, 0])
    assert torch.equal(fetched[:, 0], out)
    assert not torch.equal(out, fetched_rows(dtype, 21)[:, 0])


def test_each_step_counts_with_its_own_rate():
    """A row that missed steps of rate 0 and one of rate 1 moves as in that one."""
    for at in range(5):
        rates = np.zeros(5)
        rates[at] = 1.0
        drift = drift_after(rates, 2, ADAM)
        for slot in range(5):
            exact = moved(slot, SIZES, rates, 2, ADAM)
            assert (exact > 0).all() == (slot <= at)
            assert np.allclose(by_rule(drift, slot, SIZES), exact, rtol=1e-9, atol=0)


def test_rows_that_never_had_a_gradient_stay_where_they_are():
    for dtype in (torch.float32, torch.float64):
        drift = drift_after(random_rates(), 0, ADAM, dtype)
        fetched = torch.zeros(1, 3, 4, dtype=dtype)
        fetched[:, 0] = 5
        out = torch.empty(1, 4, dtype=dtype)
        drift.apply(fetched, torch.zeros(1, dtype=torch.int32), out)
        assert (out == 5).all()
