"""The baselines' inner loops on the CPU, compiled by Numba. What they compute is said where they are called.

Scratch tables that span the catalogue are handed in and left as they were found: to make them anew would cost more than
a block of sessions takes.
"""

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64

from skiprec.row_kernels import compiled
from skiprec.schema import PADDING

# B sessions at a time, T positions, A items a session that are asked for, K neighbours, R items in the catalogue and
# padding, S training sessions, N places of evidence, P pairs of items, V places of items in training sessions.


@compiled
def look_up_evidence(
    scratch: Float32[np.ndarray, " R"],
    by_plays: Float32[np.ndarray, " R"],
    starts: Int64[np.ndarray, " B"],
    stops: Int64[np.ndarray, " B"],
    items: Int32[np.ndarray, " N"],
    scores: Float32[np.ndarray, " N"],
    asked: Int64[np.ndarray, "B A"],
    out: Float32[np.ndarray, "B A"],
    moved: Float64[np.ndarray, " B"],
) -> None:
    """`ByEvidence._look_up`. The scratch table is a copy of `by_plays`."""
    for b in range(len(asked)):
        for e in range(starts[b], stops[b]):
            scratch[items[e]] = scores[e]
        for a in range(asked.shape[1]):
            out[b, a] = scratch[asked[b, a]]
        target = out[b, 0]
        halves = 0
        for e in range(starts[b], stops[b]):
            after, before = scores[e], by_plays[items[e]]
            halves += (after > target) + (after >= target) - (before > target) - (before >= target)
            scratch[items[e]] = before
        moved[b] = halves / 2


@compiled
def nearest_items(
    session_items: Int32[np.ndarray, " V"],
    session_edges: Int64[np.ndarray, " S+1"],
    item_sessions: Int32[np.ndarray, " V"],
    item_edges: Int64[np.ndarray, " R+1"],
    support: Int64[np.ndarray, " R"],
    k: int,
    neighbours: Int32[np.ndarray, " P"],
    similarity: Float32[np.ndarray, " P"],
    edges: Int64[np.ndarray, " R+1"],
) -> None:
    """The neighbours of every item, end to end from the start of room for more; `edges` says where each one's end."""
    R = len(support)
    together = np.zeros(R, dtype=np.int32)
    met = np.empty(R, dtype=np.int32)
    similar = np.empty(R, dtype=np.float32)
    bits = similar.view(np.int32)  # of positive floats they are in the floats' order
    nearest_first = np.empty(R, dtype=np.int64)
    done = 0
    for i in range(R):
        n_met = 0
        for p in range(item_edges[i], item_edges[i + 1]):
            session = item_sessions[p]
            for q in range(session_edges[session], session_edges[session + 1]):
                j = session_items[q]
                if together[j] == 0:
                    met[n_met] = j
                    n_met += 1
                together[j] += 1
        n_others = 0
        for m in range(n_met):
            j = met[m]
            if j != i:
                similar[n_others] = together[j] / np.sqrt(support[i] * support[j])
                # One number holds both, so that of equal ones the lower index comes first.
                nearest_first[n_others] = (np.int64(2**31 - 1 - bits[n_others]) << 32) | j
                n_others += 1
            together[j] = 0
        chosen = nearest_first[:n_others]
        if n_others > k:
            chosen = np.partition(chosen, k - 1)[:k]
        for key in chosen:
            neighbours[done] = key & (2**32 - 1)
            bits[0] = 2**31 - 1 - (key >> 32)
            similarity[done] = similar[0]
            done += 1
        edges[i + 1] = done


@compiled
def nearest_sessions(
    items: Int64[np.ndarray, "B T"],
    item_sessions: Int32[np.ndarray, " V"],
    item_edges: Int64[np.ndarray, " R+1"],
    n_own: Int64[np.ndarray, " S"],
    sample_size: int,
    neighbours: Int64[np.ndarray, "B K"],
    similarity: Int64[np.ndarray, "B K"],
    last_shared: Int64[np.ndarray, "B K"],
    found: Int64[np.ndarray, " B"],
) -> None:
    """`SessionKnn.neighbours`."""
    T, k = items.shape[1], neighbours.shape[1]
    position, at, first = np.empty(T, np.int64), np.empty(T, np.int64), np.empty(T, np.int64)
    head = np.empty(T, np.int64)  # of each list the session that is next, -1 after its end
    session, alike, last = (
        np.empty(sample_size, np.int64),
        np.empty(sample_size, np.int64),
        np.empty(sample_size, np.int64),
    )
    how_many = np.empty(T * (T + 1) // 2 + 1, np.int64)
    for b in range(len(items)):
        n_lists = 0
        for t in range(T - 1, -1, -1):
            item = items[b, t]
            is_new = item != PADDING
            for later in range(t + 1, T):
                is_new &= items[b, later] != item
            if is_new and item_edges[item] < item_edges[item + 1]:
                position[n_lists] = t + 1
                first[n_lists], at[n_lists] = item_edges[item], item_edges[item + 1] - 1
                head[n_lists] = item_sessions[at[n_lists]]
                n_lists += 1

        how_many[:] = 0
        n_candidates = 0
        for _ in range(sample_size):
            latest = -1
            for m in range(n_lists):
                latest = max(latest, head[m])
            if latest < 0:
                break
            weight = n_shared = furthest = 0
            for m in range(n_lists):
                if head[m] == latest:
                    weight += position[m]
                    n_shared += 1
                    furthest = max(furthest, position[m])
                    at[m] -= 1
                    head[m] = item_sessions[at[m]] if at[m] >= first[m] else -1
            if n_shared < n_own[latest]:
                session[n_candidates], alike[n_candidates], last[n_candidates] = latest, weight, furthest
                how_many[weight] += 1
                n_candidates += 1

        # All above the least similarity that has a place, and of those at it the later ones, as far as there is room.
        least, room = len(how_many) - 1, k
        while least > 0 and how_many[least] < room:
            room -= how_many[least]
            least -= 1
        n = 0
        for c in range(n_candidates):
            if alike[c] > least or (alike[c] == least and room > 0):
                room -= alike[c] == least
                neighbours[b, n], similarity[b, n], last_shared[b, n] = session[c], alike[c], last[c]
                n += 1
        found[b] = n


@compiled
def sum_of_neighbours(
    scratch: Float64[np.ndarray, " R"],
    session_items: Int32[np.ndarray, " V"],
    session_edges: Int64[np.ndarray, " S+1"],
    neighbours: Int64[np.ndarray, "B K"],
    weights: Float64[np.ndarray, "B K"],
    found: Int64[np.ndarray, " B"],
    items: Int32[np.ndarray, " N"],
    scores: Float32[np.ndarray, " N"],
    stops: Int64[np.ndarray, " B"],
) -> None:
    """`SessionKnn`'s evidence, end to end from the start of room for more. The scratch table is 0."""
    done = 0
    for b in range(len(found)):
        before = done
        for n in range(found[b]):
            session = neighbours[b, n]
            for p in range(session_edges[session], session_edges[session + 1]):
                item = session_items[p]
                if scratch[item] == 0:
                    items[done] = item
                    done += 1
                scratch[item] += weights[b, n]
        for e in range(before, done):
            scores[e] = scratch[items[e]]
            scratch[items[e]] = 0
        stops[b] = done
