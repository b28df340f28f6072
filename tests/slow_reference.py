"""The losses and metrics once more, as slow loops over plain numbers, for tests to compare with.

Written from the text of semantics.md alone ("section" below is a section of that page), without reading the fast
versions: where the two disagree, one of them has misread the page. Nothing here may import `skiprec` or torch.
"""

import math

import numpy as np

# B sessions, T positions, D embedding width. Sessions are right-padded with item 0, and lengths[b] of the positions
# of session b are real: they are its training prefix. table is (rows, D), predicted is (B, T', D), both float64.


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine similarity, s of section 5. A zero vector has no direction and is an error."""
    norms = math.sqrt(inner_product(a, a)) * math.sqrt(inner_product(b, b))
    if norms == 0:
        raise ValueError("a zero vector has no cosine similarity")
    return inner_product(a, b) / norms


def inner_product(a: np.ndarray, b: np.ndarray) -> float:
    """Score of an item, section 3."""
    if len(a) != len(b):
        raise ValueError(f"vectors of different width: {len(a)} and {len(b)}")
    return math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def negative_log_share(first: float, others: list[float]) -> float:
    """-log( exp(first) / (exp(first) + sum of exp(others)) ), in nats; 0 without others."""
    largest = max([first, *others])  # taken out of every exponent, so that none overflows
    total = math.fsum(math.exp(x - largest) for x in [first, *others])
    return largest + math.log(total) - first


def mean_or_zero(values: list[float]) -> float:
    """Mean, and exactly 0 of nothing (section 5: no anchor in the batch)."""
    return math.fsum(values) / len(values) if values else 0.0


def next_positive(skipped_row: list[bool], length: int) -> list[int | None]:
    """Position of p_m of section 5, for each position: the first later one in the prefix that was not skipped."""
    positives: list[int | None] = []
    for i in range(len(skipped_row)):
        found = None
        for j in range(i + 1, length):
            if not skipped_row[j]:
                found = j
                break
        positives.append(found)
    return positives


def negative_set(
    i: int,
    b: int,
    items: list[list[int]],
    skipped: list[list[bool]],
    lengths: list[int],
    scope: str,
    random_draws: list[list[int]] | None = None,
    batch_positives: set[int] | None = None,
) -> list[int]:
    """N of section 5 for position i of session b, sorted; drawn items are given as they were drawn.

    Args:
        i: A real position.
        b: A session of the batch.
        items: Item indices, B lists.
        skipped: Which positions were skipped, B lists.
        lengths: Length of each prefix.
        scope: The `negative_scope` of section 5.
        random_draws: For "random" and "popular", the items drawn for each session. A repeated draw counts as often as
            drawn.
        batch_positives: For "in_batch", the p_m of all positions of the batch that may be anchors.
    """
    if not 0 <= i < lengths[b]:
        raise ValueError(f"position {i} is not in the prefix of session {b}, which has {lengths[b]}")

    if scope in ("session", "past", "released", "in_batch"):
        if scope == "session":
            negatives = skipped_items(b, items, skipped, lengths)
        elif scope == "past":
            negatives = skipped_items(0, [items[b][:i]], [skipped[b][:i]], [i])
        elif scope == "released":
            # The rows of all sessions, repeated as a whole as often as a row of the batch is wide, padding included.
            tiled = [source for _ in range(len(items[0])) for source in range(len(items))]
            negatives = skipped_items(tiled[b * len(items[0]) + i], items, skipped, lengths)
        else:
            if batch_positives is None:
                raise ValueError('scope "in_batch" needs batch_positives')
            negatives = set(batch_positives)
        negatives.discard(items[b][i])
        p = next_positive(skipped[b], lengths[b])[i]
        if p is not None:
            negatives.discard(items[b][p])
        return sorted(negatives)

    if scope == "other_session":
        if len(items) == 1:
            return []
        other = (b + 1) % len(items)
        negatives = skipped_items(other, items, skipped, lengths)
        for j in range(lengths[b]):
            negatives.discard(items[b][j])
        return sorted(negatives)

    if scope in ("random", "popular"):
        if random_draws is None:
            raise ValueError(f'scope "{scope}" needs random_draws')
        return list(random_draws[b])  # drawn outside the prefix: p_m and item i are not among them

    raise ValueError(f"scope is {scope!r}, expected one that section 5 names")


def skipped_items(b: int, items: list[list[int]], skipped: list[list[bool]], lengths: list[int]) -> set[int]:
    """The set of items skipped in the prefix of session b, section 5."""
    found = set()
    for j in range(lengths[b]):
        if skipped[b][j]:
            found.add(items[b][j])
    return found


def contrastive_loss(
    predicted: np.ndarray,
    table: np.ndarray,
    items: list[list[int]],
    skipped: list[list[bool]],
    lengths: list[int],
    *,
    masked: list[list[bool]] | None,
    architecture: str,
    context: str,
    scope: str,
    anchors: str,
    visible_positive: bool,
    temperature: float,
    random_draws: list[list[int]] | None = None,
) -> float:
    """L_NCE of section 5: mean over the anchors of the whole batch, in nats. 0.0 when there is none.

    Args:
        predicted: y_i at position i. Unidirectional may have T - 1 positions: the last item is never an input.
        table: Item embeddings.
        items: Item indices, the true ones also where they were masked.
        skipped: Which positions were skipped.
        lengths: Length of each prefix.
        masked: Which positions were masked. Ignored for unidirectional.
        architecture: "unidirectional" or "bidirectional".
        context: c is y_i for "session", the embedding of item i for "item".
        scope: As in `negative_set`.
        anchors: "all" real positions, or "heard": those that were not skipped.
        visible_positive: Whether a bidirectional y_i may have seen its p_m.
        temperature: T.
        random_draws: As in `negative_set`.
    """
    check_choice("architecture", architecture, ["unidirectional", "bidirectional"])
    check_choice("context", context, ["session", "item"])
    check_choice("anchors", anchors, ["all", "heard"])
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")

    may_be_anchors = []
    for b in range(len(items)):
        positives = next_positive(skipped[b], lengths[b])
        for i in range(lengths[b]):
            p = positives[i]
            if p is None:
                continue
            if anchors == "heard" and skipped[b][i]:
                continue
            if architecture == "bidirectional" and context == "session" and not visible_positive and not masked[b][p]:
                continue
            may_be_anchors.append((b, i, p))
    batch_positives = {items[b][p] for b, _, p in may_be_anchors}

    losses = []
    for b, i, p in may_be_anchors:
        negatives = negative_set(i, b, items, skipped, lengths, scope, random_draws, batch_positives)
        if not negatives:
            continue
        c = predicted[b][i] if context == "session" else table[items[b][i]]
        positive_logit = cosine(table[items[b][p]], c) / temperature
        negative_logits = [cosine(table[n], c) / temperature for n in negatives]
        losses.append(negative_log_share(positive_logit, negative_logits))
    return mean_or_zero(losses)


def next_item_loss(
    predicted: np.ndarray,
    table: np.ndarray,
    items: list[list[int]],
    lengths: list[int],
    *,
    masked: list[list[bool]] | None,
    architecture: str,
    negatives: list[list[int]],
    negative_is_real: list[list[bool]],
    skipped: list[list[bool]] | None = None,
    skipped_target_weight: float = 1.0,
) -> float:
    """L_NLL of section 4: mean over the target positions of the whole batch, in nats. 0.0 when there is none.

    It is a weighted mean, in which a target that was skipped has the weight `skipped_target_weight`, and any other 1.

    Args:
        predicted: y_i at position i. Unidirectional may have T - 1 positions: the last item is never an input.
        table: Item embeddings.
        items: Item indices, the true ones also where they were masked.
        lengths: Length of each prefix.
        masked: Which positions were masked. Ignored for unidirectional.
        architecture: "unidirectional" or "bidirectional".
        negatives: The items drawn for each session, shared by its positions. A repeat counts as often as drawn.
        negative_is_real: False for a drawn item that is as if absent.
        skipped: Which positions were skipped, where it matters.
        skipped_target_weight: As above.
    """
    check_choice("architecture", architecture, ["unidirectional", "bidirectional"])

    losses, weights = [], []
    for b in range(len(items)):
        real_negatives = []
        for n, is_real in zip(negatives[b], negative_is_real[b], strict=True):
            if is_real:
                real_negatives.append(n)
        for i in range(lengths[b]):
            if architecture == "unidirectional":
                if i == lengths[b] - 1:
                    continue
                j = i + 1
            else:
                if not masked[b][i]:
                    continue
                j = i
            target = items[b][j]
            y = predicted[b][i]
            target_logit = inner_product(y, table[target])
            negative_logits = [inner_product(y, table[n]) for n in real_negatives]
            weight = skipped_target_weight if skipped is not None and skipped[b][j] else 1.0
            losses.append(weight * negative_log_share(target_logit, negative_logits))
            weights.append(weight)
    return math.fsum(losses) / math.fsum(weights) if any(weights) else 0.0


def check_choice(name: str, value: str, choices: list[str]) -> None:
    """Refuse a misspelt option: it would silently take the other branch."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {choices}")


def rank(target_score: float, candidate_scores: list[float]) -> float:
    """Section 6: 1 + (candidates scored higher) + (candidates scored equal) / 2. The target is not a candidate."""
    if math.isnan(target_score):
        raise ValueError("the target's score is NaN")
    higher = 0
    equal = 0
    for score in candidate_scores:
        if math.isnan(score):
            raise ValueError("a candidate's score is NaN")
        if score > target_score:
            higher += 1
        elif score == target_score:
            equal += 1
    return 1 + higher + equal / 2


def check_rank(rank: float) -> None:
    """Refuse what is no rank. NaN fails every comparison, so it would pass for a miss."""
    if math.isnan(rank) or rank < 1:
        raise ValueError(f"rank is {rank}, expected at least 1")


def hit_rate(rank: float, k: int) -> float:
    """HR@k of one target, section 6: 1 when it is among the first k."""
    check_rank(rank)
    return 1.0 if rank <= k else 0.0


def ndcg(rank: float, k: int) -> float:
    """NDCG@k of one target, section 6. It is the one relevant item, so the ideal gain is 1 / log2(1 + 1) = 1."""
    check_rank(rank)
    return 1 / math.log2(1 + rank) if rank <= k else 0.0


def mrr(rank: float) -> float:
    """Reciprocal rank of one target, section 6, however far down it is."""
    check_rank(rank)
    return 1 / rank


def evaluate_session(
    scores_by_item: list[float], input_items: list[int], target: int, candidates: list[int]
) -> dict[str, float | None]:
    """Ranks of one session's target, section 6.

    Args:
        scores_by_item: Score of each item at its index: 0 is padding and never read, the rest is the catalogue.
        input_items: The items the model was given. A 0 is padding.
        target: The held-out item.
        candidates: The items drawn for this session, without the target. A 0 is padding.

    Returns:
        "sampled" against the candidates, "full" against the catalogue, and "full_new" against the catalogue less the
        input's items: None where the target is one of them. The target is never its own candidate.
    """
    n_items = len(scores_by_item) - 1
    for item in [target, *candidates, *input_items]:
        if not 0 <= item <= n_items:
            raise ValueError(f"item {item} is not in the catalogue 1..{n_items}")
    if target == 0:
        raise ValueError("the target is 0, which is padding")
    if target in candidates:
        raise ValueError(f"the target {target} is among its own candidates")

    sampled_scores = [scores_by_item[item] for item in candidates if item != 0]
    other_scores = []
    new_scores = []
    for item in range(1, n_items + 1):
        if item == target:
            continue
        other_scores.append(scores_by_item[item])
        if item not in input_items:
            new_scores.append(scores_by_item[item])

    target_score = scores_by_item[target]
    return {
        "sampled": rank(target_score, sampled_scores),
        "full": rank(target_score, other_scores),
        "full_new": None if target in input_items else rank(target_score, new_scores),
    }
