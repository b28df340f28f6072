"""Sampled softmax of sessions that each have a draw of their own, on the CPU: a session's scores never leave its cache.

`losses.sampled_softmax_nll` says what is computed; `sampled_softmax.py` is its form on other devices, and what this one
is tested against.
"""

import functools

import numpy as np
from jaxtyping import Float32

from skiprec.products import LANES, multiply
from skiprec.row_kernels import compiled, exponential

# B sessions in the batch, P positions, D embedding width, N negatives a session.

TOGETHER = 8
"""Negatives whose scores a loop takes side by side: for one alone it would be too short to be vectorised."""


# Fused products and sums, as in `products.py`.
@functools.partial(compiled, fastmath={"contract"})
def session_softmax(
    predicted: Float32[np.ndarray, "B P D"],
    target: Float32[np.ndarray, "B P D"],
    negatives: Float32[np.ndarray, "B N D"],
    negatives_gradient: Float32[np.ndarray, "B N D"],
    weight: Float32[np.ndarray, "B P"],
    scale: Float32[np.ndarray, ""],
    losses: Float32[np.ndarray, " B"],
    by_predicted: Float32[np.ndarray, "B P D"],
    by_target: Float32[np.ndarray, "B P D"],
    start: int,
    stop: int,
) -> None:
    """Sessions start to stop of `sampled_softmax.SampledSoftmax`.

    `losses` is filled with each session's part of the weighted mean, and the gradients with those of that mean times
    scale. Positions without a weight are left out of all work.
    """
    (_, P, D), N = predicted.shape, negatives.shape[1]
    width = -(-P // LANES) * LANES
    places = np.empty(P, np.int64)
    queries = np.zeros((D, width), np.float32)
    rows = -(-N // TOGETHER)
    together = np.empty((rows, TOGETHER * width), np.float32)
    scores = together.reshape(rows * TOGETHER, width)
    scaled, mixed = np.empty((P, D), np.float32), np.empty((P, D), np.float32)
    positive, factors, of_positive = np.empty(P, np.float32), np.empty(P, np.float32), np.empty(P, np.float32)
    for b in range(start, stop):
        used = 0
        for p in range(P):
            by_predicted[b, p] = 0
            by_target[b, p] = 0
            if weight[b, p] != 0:
                places[used] = p
                used += 1
        losses[b] = 0
        if used == 0:
            negatives_gradient[b] = 0
            continue
        for i in range(used):
            product = np.float32(0)
            for d in range(D):
                queries[d, i] = predicted[b, places[i], d]
                product += predicted[b, places[i], d] * target[b, places[i], d]
            positive[i] = product
        # A negative a row: its scores lie side by side, and so do the sums over negatives.
        multiply(negatives[b], queries, scores[:N])
        scores[N:] = -np.inf
        top, total = np.full(TOGETHER * width, -np.inf, np.float32), np.zeros(TOGETHER * width, np.float32)
        for n in range(rows):
            for i in range(top.size):
                top[i] = max(top[i], together[n, i])
        for i in range(width):
            highest = positive[i] if i < used else np.float32(0)
            for j in range(i, top.size, width):
                highest = max(highest, top[j])
            top[i::width] = highest
        for n in range(rows):
            for i in range(top.size):
                share = exponential(together[n, i] - top[i])
                together[n, i] = share
                total[i] += share
        for i in range(used):
            p = places[i]
            share = exponential(positive[i] - top[i])
            everything = share + total[i::width].sum()
            losses[b] += weight[b, p] * (top[i] + np.log(everything) - positive[i])
            factors[i] = weight[b, p] * scale[()] / everything
            of_positive[i] = factors[i] * share - weight[b, p] * scale[()]
            for d in range(D):
                scaled[i, d] = factors[i] * predicted[b, p, d]
                by_target[b, p, d] = of_positive[i] * predicted[b, p, d]
        multiply(scores[:N, :used].T, negatives[b], mixed[:used])
        for i in range(used):
            for d in range(D):
                by_predicted[b, places[i], d] = factors[i] * mixed[i, d] + of_positive[i] * target[b, places[i], d]
        # Last: this may be the negatives' own memory.
        multiply(scores[:N, :used], scaled[:used], negatives_gradient[b])
