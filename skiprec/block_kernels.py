"""Loops of an encoder block on the CPU, one session after the other: what is made of a session stays in a core's cache.

What they compute is in `encoder_block.py`, whose torch forms run on other devices and are what these are tested
against. Only a session's real positions are worked on; what is made of padding is 0.
"""

import numpy as np
from jaxtyping import Float32, Int16, Int64

from skiprec.products import multiply
from skiprec.row_kernels import compiled, exponential, fused, prefetch

# B sessions in the batch, T positions, D embedding width, H heads, F hidden width of the feed-forward part. W is T,
# filled up to whole registers: the scores of all heads, key by key, have HW columns, one for each head and query.

ALIGNED = 16
"""W is a multiple of it: of what the widest register holds, as what is dropped must not depend on the machine."""


def score_columns(T: int) -> int:
    """W: columns of the scores of one head."""
    return -(-T // ALIGNED) * ALIGNED


@compiled
def n_real(lengths: Int64[np.ndarray, " B"], b: int, T: int) -> int:
    """Compiled code alone: real positions of a session, of the T that there are."""
    return min(max(lengths[b], 0), T)


@compiled
def add(x: Float32[np.ndarray, "T D"], bias: Float32[np.ndarray, " D"]) -> None:
    """Compiled code alone: x += bias."""
    for t in range(x.shape[0]):
        for d in range(x.shape[1]):
            x[t, d] += bias[d]


@compiled
def scale(x: Float32[np.ndarray, "T D"], factors: Float32[np.ndarray, "T D"]) -> None:
    """Compiled code alone: x *= factors."""
    for t in range(x.shape[0]):
        for d in range(x.shape[1]):
            x[t, d] *= factors[t, d]


@compiled
def drop(x: Float32[np.ndarray, "T D"], bits: Int16[np.ndarray, "_ D"], threshold: int, factor: float) -> None:
    """Compiled code alone: x is multiplied by the factor where its bits reach the threshold, and by 0 elsewhere.

    Without bits it stays as it is. Multiplied, not chosen, so that nan stays. In place, like the two above: a loop
    whose result may be its input is not vectorised.
    """
    lowest, kept = np.int16(threshold), np.float32(factor)
    if len(bits):
        for t in range(x.shape[0]):
            for d in range(x.shape[1]):
                x[t, d] *= kept if bits[t, d] >= lowest else np.float32(0)


@compiled
def copy_rows(x: Float32[np.ndarray, "T D"], out: Float32[np.ndarray, "T D"]) -> None:
    """Compiled code alone: out = x. What Numba makes of that itself takes seconds to compile."""
    for t in range(x.shape[0]):
        for d in range(x.shape[1]):
            out[t, d] = x[t, d]


@compiled
def transpose(x: Float32[np.ndarray, "T D"], factor: float, out: Float32[np.ndarray, "D W"]) -> None:
    """Compiled code alone: the first T columns of out are x by columns, times a factor."""
    for t in range(x.shape[0]):
        for d in range(x.shape[1]):
            out[d, t] = x[t, d] * factor


@compiled
def ask_ahead(x: Float32[np.ndarray, "B T D"], b: int, part: int, parts: int) -> None:
    """Compiled code alone: ask for one of so many parts of a session, if there is one.

    In parts, as no more than some dozens of requests are under way at once: between them there is work to do.
    """
    if b < x.shape[0]:
        session, size = x[b], 4 * x.shape[1] * x.shape[2]
        for byte in range(size * part // parts, size * (part + 1) // parts, 64):
            prefetch(session, 0, byte)


@fused
def attend(
    x: Float32[np.ndarray, "B T D"],
    lengths: Int64[np.ndarray, " B"],
    is_causal: bool,
    n_heads: int,
    weight_in: Float32[np.ndarray, "D 3*D"],
    bias_in: Float32[np.ndarray, " 3*D"],
    weight_out: Float32[np.ndarray, "D D"],
    bias_out: Float32[np.ndarray, " D"],
    score_bits: Int16[np.ndarray, "B _ HW"],
    bits: Int16[np.ndarray, "B _ D"],
    threshold: int,
    factor: float,
    projected: Float32[np.ndarray, "B T 3*D"],
    shares: Float32[np.ndarray, "B T HW"],
    mixed: Float32[np.ndarray, "B T D"],
    out: Float32[np.ndarray, "B T D"],
    start: int,
    stop: int,
) -> None:
    """Sessions start to stop of attention. The weights are transposed: a number of x a row.

    Filled are the projections, the shares of attention (before dropout), the values mixed by them, and the result.
    """
    _, T, D = x.shape
    W, dim = shares.shape[2] // n_heads, D // n_heads
    root = np.float32(dim) ** np.float32(-0.5)
    queries, dropped = np.zeros((D, W), np.float32), np.empty((T, n_heads * W), np.float32)
    top, total = np.empty(n_heads * W, np.float32), np.empty(n_heads * W, np.float32)
    # -inf where a query is asked before the key is there.
    bias = np.zeros((T, n_heads * W), np.float32)
    if is_causal:
        for s in range(T):
            for h in range(n_heads):
                bias[s, h * W : h * W + s] = -np.inf
    for b in range(start, stop):
        n = n_real(lengths, b, T)
        mixed[b][n:] = 0
        out[b][n:] = 0
        project, share, mix = projected[b][:n], shares[b][:n], mixed[b][:n]
        multiply(x[b][:n], weight_in, project)
        add(project, bias_in)
        transpose(project[:, :D], root, queries)
        for h in range(n_heads):
            ask_ahead(x, b + 1, h, n_heads)
            ask_ahead(projected, b + 1, h, n_heads)
            keys, part = project[:, D + h * dim : D + (h + 1) * dim], share[:, h * W : (h + 1) * W]
            multiply(keys, queries[h * dim : (h + 1) * dim], part)
        top[:] = -np.inf
        total[:] = 0
        for s in range(n):
            for i in range(top.size):
                share[s, i] += bias[s, i]
                top[i] = max(top[i], share[s, i])
        for s in range(n):
            for i in range(top.size):
                share[s, i] = exponential(share[s, i] - top[i])
                total[i] += share[s, i]
        for i in range(top.size):
            total[i] = 1 / total[i]
        for s in range(n):
            for i in range(top.size):
                share[s, i] *= total[i]
        copy_rows(share, dropped[:n])
        drop(dropped[:n], score_bits[b][:n], threshold, factor)
        for h in range(n_heads):
            ask_ahead(shares, b + 1, h, n_heads)
            ask_ahead(mixed, b + 1, h, n_heads)
            ask_ahead(out, b + 1, h, n_heads)
            values = project[:, 2 * D + h * dim : 2 * D + (h + 1) * dim]
            multiply(dropped[:n, h * W : h * W + n].T, values, mix[:, h * dim : (h + 1) * dim])
        multiply(mix, weight_out, out[b][:n])
        add(out[b][:n], bias_out)
        drop(out[b][:n], bits[b][:n], threshold, factor)


@fused
def attend_backward(
    gradient: Float32[np.ndarray, "B T D"],
    lengths: Int64[np.ndarray, " B"],
    n_heads: int,
    weight_in: Float32[np.ndarray, "3*D D"],
    weight_out: Float32[np.ndarray, "D D"],
    score_bits: Int16[np.ndarray, "B _ HW"],
    bits: Int16[np.ndarray, "B _ D"],
    threshold: int,
    factor: float,
    projected: Float32[np.ndarray, "B T 3*D"],
    shares: Float32[np.ndarray, "B T HW"],
    by_projected: Float32[np.ndarray, "B T 3*D"],
    by_out: Float32[np.ndarray, "B T D"],
    by_x: Float32[np.ndarray, "B T D"],
    start: int,
    stop: int,
) -> None:
    """Sessions start to stop of the gradient of `attend`. The weights are as they are.

    Filled are the gradients of the projections, of the result before its dropout, and of x.
    """
    _, T, D = gradient.shape
    W, dim = shares.shape[2] // n_heads, D // n_heads
    root = np.float32(dim) ** np.float32(-0.5)
    by_mixed, turned = np.empty((T, D), np.float32), np.zeros((D, W), np.float32)
    dropped, by_share = np.empty((T, n_heads * W), np.float32), np.empty((T, n_heads * W), np.float32)
    total = np.empty(n_heads * W, np.float32)
    for b in range(start, stop):
        n = n_real(lengths, b, T)
        by_projected[b][n:] = 0
        by_out[b][n:] = 0
        by_x[b][n:] = 0
        project, share, by_project = projected[b][:n], shares[b][:n], by_projected[b][:n]
        copy_rows(gradient[b][:n], by_out[b][:n])
        drop(by_out[b][:n], bits[b][:n], threshold, factor)
        multiply(by_out[b][:n], weight_out, by_mixed[:n])
        transpose(by_mixed[:n], np.float32(1), turned)
        copy_rows(share, dropped[:n])
        drop(dropped[:n], score_bits[b][:n], threshold, factor)
        for h in range(n_heads):
            one, key = slice(h * dim, (h + 1) * dim), slice(h * W, h * W + n)
            ask_ahead(projected, b + 1, h, n_heads)
            ask_ahead(by_projected, b + 1, h, n_heads)
            values = project[:, 2 * D + h * dim : 2 * D + (h + 1) * dim]
            multiply(values, turned[one], by_share[:n, h * W : (h + 1) * W])
            multiply(dropped[:n, key], by_mixed[:n, one], by_project[:, 2 * D + h * dim : 2 * D + (h + 1) * dim])
        drop(by_share[:n], score_bits[b][:n], threshold, factor)
        total[:] = 0
        for s in range(n):
            for i in range(total.size):
                total[i] += share[s, i] * by_share[s, i]
        for s in range(n):
            for i in range(total.size):
                by_share[s, i] = share[s, i] * (by_share[s, i] - total[i]) * root
        for h in range(n_heads):
            by_score = by_share[:n, h * W : h * W + n]
            query, key = slice(h * dim, (h + 1) * dim), slice(D + h * dim, D + (h + 1) * dim)
            ask_ahead(shares, b + 1, h, n_heads)
            ask_ahead(gradient, b + 1, h, n_heads)
            multiply(by_score.T, project[:, key], by_project[:, query])
            multiply(by_score, project[:, query], by_project[:, key])
        multiply(by_project, weight_in, by_x[b][:n])


@fused
def gelu(x: float) -> tuple[float, float]:
    """Compiled code alone: x P(X < x) of a standard normal X, and its slope; to 1e-7.

    The normal's tail as in Abramowitz & Stegun (1964), 7.1.26.
    """
    z = abs(x) * np.float32(0.70710678)
    t = np.float32(1) / (np.float32(1) + np.float32(0.3275911) * z)
    y = np.float32(1.061405429)
    y = y * t - np.float32(1.453152027)
    y = y * t + np.float32(1.421413741)
    y = y * t - np.float32(0.284496736)
    y = y * t + np.float32(0.254829592)
    density = exponential(-z * z)
    tail = np.float32(0.5) * y * t * density
    below = np.float32(1) - tail if x > 0 else tail
    return x * below, below + x * density * np.float32(0.39894228)


@fused
def feed_forward(
    x: Float32[np.ndarray, "B T D"],
    lengths: Int64[np.ndarray, " B"],
    is_gelu: bool,
    weight1: Float32[np.ndarray, "D F"],
    bias1: Float32[np.ndarray, " F"],
    weight2: Float32[np.ndarray, "F D"],
    bias2: Float32[np.ndarray, " D"],
    inner_bits: Int16[np.ndarray, "B _ F"],
    bits: Int16[np.ndarray, "B _ D"],
    threshold: int,
    factor: float,
    inner: Float32[np.ndarray, "B T F"],
    slopes: Float32[np.ndarray, "B T F"],
    out: Float32[np.ndarray, "B T D"],
    start: int,
    stop: int,
) -> None:
    """Sessions start to stop of the feed-forward part. The weights are transposed: a number that goes in a row.

    Filled are the hidden numbers, their slopes by the sums that they are made of, both after dropout, and the result.
    """
    T = x.shape[1]
    for b in range(start, stop):
        n = n_real(lengths, b, T)
        inner[b][n:] = 0
        out[b][n:] = 0
        hidden, slope = inner[b][:n], slopes[b][:n]
        multiply(x[b][:n], weight1, hidden)
        for t in range(n):
            if is_gelu:
                for f in range(hidden.shape[1]):
                    hidden[t, f], slope[t, f] = gelu(hidden[t, f] + bias1[f])
            else:
                for f in range(hidden.shape[1]):
                    total = hidden[t, f] + bias1[f]
                    # Written so that nan stays.
                    hidden[t, f] = np.float32(0) if total < 0 else total
                    slope[t, f] = np.float32(1) if total > 0 else np.float32(0)
        drop(hidden, inner_bits[b][:n], threshold, factor)
        drop(slope, inner_bits[b][:n], threshold, factor)
        multiply(hidden, weight2, out[b][:n])
        add(out[b][:n], bias2)
        drop(out[b][:n], bits[b][:n], threshold, factor)


@fused
def feed_forward_backward(
    gradient: Float32[np.ndarray, "B T D"],
    lengths: Int64[np.ndarray, " B"],
    weight1: Float32[np.ndarray, "F D"],
    weight2: Float32[np.ndarray, "D F"],
    bits: Int16[np.ndarray, "B _ D"],
    threshold: int,
    factor: float,
    slopes: Float32[np.ndarray, "B T F"],
    by_inner: Float32[np.ndarray, "B T F"],
    by_out: Float32[np.ndarray, "B T D"],
    by_x: Float32[np.ndarray, "B T D"],
    start: int,
    stop: int,
) -> None:
    """Sessions start to stop of the gradient of `feed_forward`. The weights are as they are.

    Filled are the gradients of the hidden sums, of the result before its dropout, and of x.
    """
    T = gradient.shape[1]
    for b in range(start, stop):
        n = n_real(lengths, b, T)
        by_inner[b][n:] = 0
        by_out[b][n:] = 0
        by_x[b][n:] = 0
        copy_rows(gradient[b][:n], by_out[b][:n])
        drop(by_out[b][:n], bits[b][:n], threshold, factor)
        multiply(by_out[b][:n], weight2, by_inner[b][:n])
        scale(by_inner[b][:n], slopes[b][:n])
        multiply(by_inner[b][:n], weight1, by_x[b][:n])


@compiled
def sum_products(
    a: Float32[np.ndarray, "N O"], b: Float32[np.ndarray, "N I"], out: Float32[np.ndarray, "O I"], start: int, stop: int
) -> None:
    """Rows start to stop of out: a row for each number of a row of a, times the rows of b, summed over them."""
    multiply(a[:, start:stop].T, b, out[start:stop])
