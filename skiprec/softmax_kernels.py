"""Sampled softmax on the CPU, a few positions at a time: their scores never leave a core's cache.

`losses.sampled_softmax_nll` says what is computed; `sampled_softmax.py` has its form on other devices, which is what
these loops are tested against.
"""

import numpy as np
from jaxtyping import Bool, Float32, Int64

from skiprec.products import LANES, multiply
from skiprec.row_kernels import exponential, fused

# B sessions in the batch, P positions, D embedding width, N negatives a draw.

POSITIONS = 64
"""Of different sessions, taken together where all have the same negatives: whole tiles of products."""
TOGETHER = 8
"""Negatives whose scores a loop takes side by side: for one alone it would be too short to be vectorised."""


@fused
def softmax_of(
    sessions: Int64[np.ndarray, " n"],
    places: Int64[np.ndarray, " n"],
    predicted: Float32[np.ndarray, "B P D"],
    target: Float32[np.ndarray, "B P D"],
    negatives: Float32[np.ndarray, "N D"],
    negatives_gradient: Float32[np.ndarray, "N D"],
    adds: bool,
    negative_mask: Bool[np.ndarray, "_ N"],
    weight: Float32[np.ndarray, "B P"],
    scale: float,
    losses: Float32[np.ndarray, " B"],
    by_predicted: Float32[np.ndarray, "B P D"],
    by_target: Float32[np.ndarray, "B P D"],
) -> None:
    """Compiled code alone: of some positions, by their sessions and places, which have the same negatives.

    Their loss is added to their sessions'; the gradient of the negatives is written, or added if it adds.
    """
    used, (N, D) = len(places), negatives.shape
    width, rows = -(-used // LANES) * LANES, -(-N // TOGETHER)
    queries = np.zeros((D, width), np.float32)
    scaled, mixed = np.empty((used, D), np.float32), np.empty((used, D), np.float32)
    together = np.empty((rows, TOGETHER * width), np.float32)
    scores = together.reshape(rows * TOGETHER, width)
    positive, factors, of_positive = np.empty(used, np.float32), np.empty(used, np.float32), np.empty(used, np.float32)
    for i in range(used):
        b, p = sessions[i], places[i]
        product = np.float32(0)
        for d in range(D):
            queries[d, i] = predicted[b, p, d]
            product += predicted[b, p, d] * target[b, p, d]
        positive[i] = product
    # A negative a row: its scores lie side by side, and so do the sums over negatives.
    multiply(negatives, queries, scores[:N])
    scores[N:] = -np.inf
    if len(negative_mask):
        first = 0
        while first < used:  # the positions of one session after the other
            b, last = sessions[first], first
            while last < used and sessions[last] == b:
                last += 1
            for n in range(N):
                if not negative_mask[b, n]:
                    scores[n, first:last] = -np.inf
            first = last
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
        b, p = sessions[i], places[i]
        share = exponential(positive[i] - top[i])
        everything = share + total[i::width].sum()
        losses[b] += weight[b, p] * (top[i] + np.log(everything) - positive[i])
        factors[i] = weight[b, p] * scale / everything
        of_positive[i] = factors[i] * share - weight[b, p] * scale
        for d in range(D):
            scaled[i, d] = factors[i] * predicted[b, p, d]
            by_target[b, p, d] = of_positive[i] * predicted[b, p, d]
    multiply(scores[:N, :used].T, negatives, mixed)
    for i in range(used):
        b, p = sessions[i], places[i]
        for d in range(D):
            by_predicted[b, p, d] = factors[i] * mixed[i, d] + of_positive[i] * target[b, p, d]
    # Last: this may be the negatives' own memory.
    multiply(scores[:N, :used], scaled, negatives_gradient, adds)


@fused
def session_softmax(
    predicted: Float32[np.ndarray, "B P D"],
    target: Float32[np.ndarray, "B P D"],
    negatives: Float32[np.ndarray, "B N D"],
    negatives_gradient: Float32[np.ndarray, "B N D"],
    negative_mask: Bool[np.ndarray, "_ N"],
    weight: Float32[np.ndarray, "B P"],
    scale: Float32[np.ndarray, ""],
    losses: Float32[np.ndarray, " B"],
    by_predicted: Float32[np.ndarray, "B P D"],
    by_target: Float32[np.ndarray, "B P D"],
    start: int,
    stop: int,
) -> None:
    """Sessions start to stop of `sampled_softmax.SampledSoftmax`, with a draw each.

    `losses` is filled with each session's part of the weighted mean, the gradients with those of that mean times scale.
    Positions without a weight are left out of all work.
    """
    P = predicted.shape[1]
    sessions, places = np.empty(P, np.int64), np.empty(P, np.int64)
    for b in range(start, stop):
        losses[b] = 0
        used = 0
        for p in range(P):
            by_predicted[b, p] = 0
            by_target[b, p] = 0
            if weight[b, p] != 0:
                sessions[used] = b
                places[used] = p
                used += 1
        of, into = (sessions[:used], places[:used], predicted, target), (losses, by_predicted, by_target)
        softmax_of(*of, negatives[b], negatives_gradient[b], False, negative_mask, weight, scale[()], *into)


@fused
def shared_softmax(
    predicted: Float32[np.ndarray, "B P D"],
    target: Float32[np.ndarray, "B P D"],
    negatives: Float32[np.ndarray, "1 N D"],
    negatives_gradients: Float32[np.ndarray, "parts N D"],
    negative_mask: Bool[np.ndarray, "_ N"],
    weight: Float32[np.ndarray, "B P"],
    scale: Float32[np.ndarray, ""],
    losses: Float32[np.ndarray, " B"],
    by_predicted: Float32[np.ndarray, "B P D"],
    by_target: Float32[np.ndarray, "B P D"],
    start: int,
    stop: int,
) -> None:
    """Parts start to stop of the batch, with a draw that all share; otherwise as `session_softmax`.

    The gradient of the negatives is the sum of all parts'.
    """
    (B, P, _), parts = predicted.shape, len(negatives_gradients)
    sessions, places = np.empty(POSITIONS, np.int64), np.empty(POSITIONS, np.int64)
    for part in range(start, stop):
        negatives_gradients[part] = 0
        used, end = 0, B * (part + 1) // parts
        for b in range(B * part // parts, end):
            losses[b] = 0
            for p in range(P):
                by_predicted[b, p] = 0
                by_target[b, p] = 0
                if weight[b, p] != 0:
                    sessions[used] = b
                    places[used] = p
                    used += 1
                if used == POSITIONS or (b == end - 1 and p == P - 1):
                    of, into = (sessions[:used], places[:used], predicted, target), (losses, by_predicted, by_target)
                    softmax_of(
                        *of, negatives[0], negatives_gradients[part], True, negative_mask, weight, scale[()], *into
                    )
                    used = 0
