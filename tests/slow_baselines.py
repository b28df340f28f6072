"""The baselines as their definitions read, with dicts, loops and exact fractions: what the fast ones must agree with.

A session is a list of items here; `prefixes` are the training prefixes. Each function gives the evidence for items:
those that are not among its keys come after all that are, by plays.
"""

import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np


def most_popular(prefixes: list[list[int]], inputs: list[int]) -> dict[int, float]:
    """The session says nothing."""
    return {}


def session_popular(prefixes: list[list[int]], inputs: list[int]) -> dict[int, float]:
    """The session's own tracks, by plays."""
    plays = Counter(item for prefix in prefixes for item in prefix)
    return {item: plays[item] for item in inputs}


def markov(prefixes: list[list[int]], inputs: list[int]) -> dict[int, float]:
    """How often each item came right after the last one, of all that came after it."""
    followed = Counter()
    for prefix in prefixes:
        for before, after in itertools.pairwise(prefix):
            if before == inputs[-1]:
                followed[after] += 1
    return {item: Fraction(count, followed.total()) for item, count in followed.items()}


def item_knn(prefixes: list[list[int]], inputs: list[int], k: int = 100, damping: int = 20) -> dict[int, float]:
    """The k items most similar to the last one, by damped cosine of the sets of sessions that have them."""
    last = inputs[-1]
    sessions_of: dict[int, set[int]] = {}
    for number, prefix in enumerate(prefixes):
        for item in prefix:
            sessions_of.setdefault(item, set()).add(number)
    similarity = {}
    for item, sessions in sessions_of.items():
        together = len(sessions & sessions_of.get(last, set()))
        if item != last and together:
            norm = math.sqrt((len(sessions) + damping) * (len(sessions_of[last]) + damping))
            similarity[item] = float(np.float32(together / norm))
    nearest = sorted(similarity, key=lambda item: (-similarity[item], item))[:k]
    return {item: similarity[item] for item in nearest}


def session_knn(
    prefixes: list[list[int]], inputs: list[int], k: int = 100, sample_size: int = 1000
) -> dict[int, float]:
    """V-SKNN: items of the k nearest of the sampled sessions that share an item and have one that is not here."""
    length = len(inputs)
    weight = {}
    for position, item in enumerate(inputs, start=1):
        weight[item] = Fraction(position, length)  # of a repeated item the last
    here = set(inputs)
    sharing = [number for number, prefix in enumerate(prefixes) if not here.isdisjoint(prefix)]
    sample = sharing[-sample_size:]
    neighbours = []
    for number in sample:
        items = set(prefixes[number])
        if not items <= here:
            neighbours.append((sum(weight[item] for item in items & here), number))
    neighbours = sorted(neighbours, reverse=True)[:k]
    scores: dict[int, Fraction] = {}
    for similarity, number in neighbours:
        step = next(s for s, item in enumerate(reversed(inputs), start=1) if item in prefixes[number])
        for item in set(prefixes[number]):
            scores[item] = scores.get(item, Fraction(0)) + similarity / step
    return scores


def places(evidence: dict[int, float], plays: np.ndarray) -> np.ndarray:
    """Of each item a number that is higher the earlier it comes; equal ones come together."""
    order = {value: number for number, value in enumerate(sorted(set(evidence.values())))}
    found = plays - plays.max() - 1
    for item, value in evidence.items():
        found[item] = order[value]
    return found


def rank(evidence: dict[int, float], plays: Counter, target: int, candidates: list[int]) -> float:
    """1 + those before the target + half of those beside it."""

    def place(item: int) -> tuple[bool, float]:
        return (True, evidence[item]) if item in evidence else (False, plays[item])

    others = [place(item) for item in candidates if item != target]
    higher = sum(other > place(target) for other in others)
    equal = sum(other == place(target) for other in others)
    return 1 + higher + equal / 2
