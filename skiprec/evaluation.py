"""Held-out targets ranked among sampled candidates and among the whole catalogue, and the metrics by group.

Whoever gives scores can be evaluated: the model and the baselines go through the same questions.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from skiprec.dataset import Dataset, HeldOut, Sessions, Split, feature_differences, held_out
from skiprec.device import has_kernels, one_thread
from skiprec.errors import ConfigError, TrainingDiverged
from skiprec.features import FEATURE_THIRDS, thirds
from skiprec.metrics import hit_rate, mrr, ndcg, target_rank
from skiprec.model import SequenceEncoder
from skiprec.schema import PADDING
from skiprec.seeds import counter_bits, derive_seed

# B sessions at a time, S sessions in all, T positions, C candidates a session, R items in the catalogue and padding.

N_CANDIDATES = 1000
HIT_RATE_AT = (1, 5, 10, 20)
SESSIONS_AT_A_TIME = 256
THIRDS = ("first", "second", "last")
"""Items that carry the first, second and last third of training plays, the most played ones first."""
LONGEST_PART = 200
"""MLflow takes 250 characters for a metric's name, and split, group, measure and metric are in it too."""


@runtime_checkable
class Scorer(Protocol):
    """Says how likely items are to follow a session; higher is likelier."""

    def candidate_scores(self, inputs: Sessions, candidates: Int[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        """Scores of a few items for each session."""

    def catalogue_scores(self, inputs: Sessions) -> Float[Tensor, "B R"]:
        """Scores of every item for each session, by item index; that of index 0 (padding) has no meaning."""


@runtime_checkable
class CatalogueRanker(Protocol):
    """A scorer that knows ranks in the whole catalogue without the scores of it all."""

    def scores_and_ranks(
        self, inputs: Sessions, asked: Int[Tensor, "B C"]
    ) -> tuple[Float[Tensor, "B C"], Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Scores of a few items for each session, of which the first one is the target, and the targets' ranks.

        They are among all items, and among those not in the inputs, as `metrics.target_rank` gives them. The second one
        has no meaning where the target is in the inputs.
        """


class ModelScorer:
    """The encoder as a scorer: inner products of the predicted embedding with the items'."""

    def __init__(self, model: SequenceEncoder) -> None:
        self.model = model

    @torch.no_grad()
    def candidate_scores(self, inputs: Sessions, candidates: Int[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        """Scores of a few items for each session."""
        predicted, table = self._predicted(inputs), self.model.items.weight.detach()
        if table.dtype != torch.float32 or not has_kernels(table.device):
            return torch.einsum("bd,bcd->bc", predicted, table[candidates])
        from skiprec.row_kernels import over_rows, score_rows

        scores = predicted.new_empty(candidates.shape)
        # A row may lie beside its moments; the kernel takes what is contiguous.
        R, D = table.shape
        storage = table.as_strided((R, table.stride(0) // D, D), (table.stride(0), D, 1))
        over_rows(score_rows, len(scores), storage, candidates.int(), predicted, scores, worth_a_thread=16)
        return scores

    @torch.no_grad()
    def catalogue_scores(self, inputs: Sessions) -> Float[Tensor, "B R"]:
        """Scores of every item for each session."""
        return self._predicted(inputs) @ self.model.items.weight[: self.model.n_items + 1].T

    def _predicted(self, inputs: Sessions) -> Float[Tensor, "B D"]:
        return self.model.next_item(inputs.items, inputs.lengths, inputs.skip_levels)


def draw_candidates(dataset: Dataset, split: str, n_candidates: int = N_CANDIDATES) -> Int[Tensor, "S {n_candidates}"]:
    """The candidates of every session that is asked about: uniform, without replacement, none of them in the session.

    They depend on the dataset and the split alone, so every model answers the same questions (semantics: section 6).

    Args:
        dataset: Whose sessions.
        split: "val" or "test".
        n_candidates: Candidates a session; all that there are, then 0, where there are fewer.

    Returns:
        Item indices as int32, on the CPU.
    """
    key = derive_seed(dataset.digest, split, "candidates")
    sessions = dataset.items[dataset.asked(split)].cpu().numpy()
    rows = np.arange(len(sessions), dtype=np.uint64)[:, None]
    few = dataset.n_items <= 4 * n_candidates
    draw = shuffled_candidates if few else rejected_candidates
    blocks = [
        draw(key, rows[a : a + 1024], sessions[a : a + 1024], dataset.n_items, n_candidates)
        for a in range(0, len(sessions), 1024)
    ]
    return torch.from_numpy(np.concatenate(blocks))


def shuffled_candidates(key: int, rows: np.ndarray, sessions: np.ndarray, n_items: int, n: int) -> np.ndarray:
    """Candidates as the first n of a random order of the items outside the session: for small catalogues."""
    items = np.arange(n_items + 1, dtype=np.uint64)
    order = counter_bits(key, rows * np.uint64(n_items + 1) + items) >> np.uint64(1)
    last = np.uint64(2**63)
    np.put_along_axis(order, sessions, last, axis=1)
    order[:, PADDING] = last
    chosen = order.argsort(axis=1, kind="stable")[:, :n].astype(np.int32)
    chosen[np.take_along_axis(order, chosen.astype(np.int64), axis=1) == last] = PADDING
    return np.pad(chosen, ((0, 0), (0, max(0, n - chosen.shape[1]))), constant_values=PADDING)


def rejected_candidates(key: int, rows: np.ndarray, sessions: np.ndarray, n_items: int, n: int) -> np.ndarray:
    """Candidates by drawing again those that hit the session or an earlier candidate: for large catalogues."""
    slots = rows * np.uint64(n) + np.arange(n, dtype=np.uint64)
    chosen = np.zeros(slots.shape, dtype=np.int64)
    again = np.ones(slots.shape, dtype=bool)
    attempt = 0
    while again.any():
        bits = counter_bits(derive_seed(key, attempt), slots[again])
        chosen[again] = 1 + (bits % np.uint64(n_items)).astype(np.int64)
        left = again.any(1)
        again[left] = repeats(np.concatenate([sessions[left], chosen[left]], axis=1))[:, sessions.shape[1] :]
        attempt += 1
    return chosen.astype(np.int32)


def repeats(items: Int64[np.ndarray, "B W"]) -> Bool[np.ndarray, "B W"]:
    """Where an item of a row stands for the second time or later. Items are below 2^40, W below 2^23."""
    bits = int(items.shape[1]).bit_length()
    # Sorted as one number with its place, which is several times faster than finding a stable order.
    ordered = np.sort((items << bits) | np.arange(items.shape[1]), axis=1)
    rows, columns = np.nonzero((ordered[:, 1:] >> bits) == (ordered[:, :-1] >> bits))
    is_repeat = np.zeros(items.shape, dtype=bool)
    is_repeat[rows, ordered[rows, columns + 1] & ((1 << bits) - 1)] = True
    return is_repeat


class Evaluator:
    """One split's questions, made once and kept on the device: the same for every model, epoch and trial.

    Args:
        dataset: Whose held-out items.
        split: "val" or "test".
        device: Where scorers run.
        n_candidates: Sampled ones a target.
        only_targets: "all", or "heard": targets that were skipped are not asked about.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        device: torch.device | str = "cpu",
        *,
        n_candidates: int = N_CANDIDATES,
        only_targets: str = "all",
    ) -> None:
        self.split = split
        self.questions: HeldOut = held_out(dataset, split).to(device)
        self.context_names = dataset.context_names
        targets = self.questions.targets.cpu().numpy()
        self.feature_thirds = {
            name: torch.from_numpy(thirds(dataset.features[name])[targets]).to(device)
            for name in feature_differences(dataset)
        }
        """Of each target, by feature, those first that tell skipped plays most from heard ones."""
        skipped = self.questions.target_skipped
        self.is_asked = ~skipped if only_targets == "heard" else torch.ones_like(skipped)
        if not self.is_asked.any():
            raise ConfigError(f"{dataset.path}: no {split} target was heard, so only_targets 'heard' leaves none")
        candidates = draw_candidates(dataset, split, n_candidates).to(device)
        self.is_candidate = candidates != PADDING
        # Column 0 is the target: it is scored with the others.
        self.asked = torch.cat([self.questions.targets[:, None].int(), candidates], dim=1)

    def sampled(self, scorer: Scorer) -> dict[str, float]:
        """Metrics of each target against its sampled candidates, and val/nll in nats.

        Raises:
            TrainingDiverged: If a score is NaN.
        """
        ranks, losses = self._sampled(scorer)
        return self.metrics({"sampled": ranks}, self.groups()) | self._nll(losses)

    def full(self, scorer: Scorer) -> dict[str, float]:
        """Metrics of each target against the whole catalogue: `full_`, and `full_new_` for new targets among new items.

        Raises:
            TrainingDiverged: If a score is NaN.
        """
        return self.metrics(self._full(scorer), self.groups())

    def sampled_and_full(self, scorer: Scorer) -> dict[str, float]:
        """What `sampled` and `full` give.

        Raises:
            TrainingDiverged: If a score is NaN.
        """
        ranks, losses = self._ranks(scorer)
        return self.metrics(ranks, self.groups()) | self._nll(losses)

    def ranks(self, scorer: Scorer) -> dict[str, Float[Tensor, " S"]]:
        """The rank of every target that is asked about, by the name of the measure; NaN where a measure does not ask.

        Raises:
            TrainingDiverged: If a score is NaN.
        """
        return self._ranks(scorer)[0]

    def measure(self, scorer: Scorer) -> tuple[dict[str, float], dict[str, Float[Tensor, " S"]]]:
        """Metrics by every measure and group, and the ranks that they are made from.

        Raises:
            TrainingDiverged: If a score is NaN.
        """
        ranks, losses = self._ranks(scorer)
        finer = self.metrics(ranks, self.finer_groups())
        # Of the many finer groups the ranks tell everything; here is the one metric that is looked at.
        shown = {name: value for name, value in finer.items() if name.endswith(("hr_at_10", "count"))}
        return self.metrics(ranks, self.groups()) | self._nll(losses) | shown, ranks

    def metrics(self, ranks: Mapping[str, Tensor], groups: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics by measure and group, by their names in the tracker.

        Args:
            ranks: As `ranks` gives them.
            groups: Masks of sessions, by what their metrics' names start with.
        """
        found: dict[str, float] = {}
        for measure, rank in ranks.items():
            prefix = "" if measure == "sampled" else f"{measure}_"
            members = {name: mask & ~rank.isnan() for name, mask in groups.items()}
            found |= metrics_by_group(rank, members, f"{self.split}/", prefix)
        return found

    def groups(self) -> dict[str, Bool[Tensor, " S"]]:
        """All sessions that are asked about, and those of heard, skipped, repeated and new targets."""
        skipped, repeated = self.questions.target_skipped, self.questions.target_repeated
        groups = {"": torch.ones_like(skipped), "heard/": ~skipped, "skipped/": skipped}
        groups |= {"repeat/": repeated, "new/": ~repeated}
        return {name: mask & self.is_asked for name, mask in groups.items()}

    def finer_groups(self) -> dict[str, Bool[Tensor, " S"]]:
        """The sessions by context type, popularity and length: for once a run, not once an epoch."""
        asked = self.questions
        groups = {f"popularity/{name}/": asked.target_third == i for i, name in enumerate(THIRDS)}
        groups |= {f"length/{n}/": asked.session_lengths == n for n in asked.session_lengths.unique().tolist()}
        for i, name in enumerate(metric_names(self.context_names)):
            groups[f"context/{name}/"] = asked.target_context == i
        names = metric_names(list(self.feature_thirds))
        for name, third in zip(names, self.feature_thirds.values(), strict=True):
            groups |= {f"feature/{name}/{which}/": third == i for i, which in enumerate(FEATURE_THIRDS)}
        return {name: mask & self.is_asked for name, mask in groups.items()}

    def _ranks(self, scorer: Scorer) -> tuple[dict[str, Float[Tensor, " S"]], Float[Tensor, " S"]]:
        """Ranks by measure, NaN where one does not ask, and losses of all targets in nats."""
        if isinstance(scorer, CatalogueRanker):
            sampled, losses, full = self._at_once(scorer)
        else:
            (sampled, losses), full = self._sampled(scorer), self._full(scorer)
        ranks = {"sampled": sampled} | full
        return {measure: rank.masked_fill(~self.is_asked, torch.nan) for measure, rank in ranks.items()}, losses

    def _nll(self, losses: Float[Tensor, " S"]) -> dict[str, float]:
        return {f"{self.split}/nll": losses[self.is_asked].mean().item()}

    def _sampled(self, scorer: Scorer) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
        """Ranks, and losses in nats."""
        found = []
        for rows in self._blocks():
            scores = scorer.candidate_scores(self.questions.inputs.of(rows), self.asked[rows].long())
            found.append(self._among_candidates(scores, rows))
        return joined(found)

    def _full(self, scorer: Scorer) -> dict[str, Float[Tensor, " S"]]:
        """Ranks in the whole catalogue, and of new targets (else NaN) among what is not in the inputs."""
        return self._full_ranks(*joined([self._in_catalogue(scorer, rows) for rows in self._blocks()]))

    @one_thread()
    def _at_once(
        self, ranker: CatalogueRanker
    ) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"], dict[str, Float[Tensor, " S"]]]:
        """What `_sampled` and `_full` give, with each session looked at once."""
        # Not a list of small tensors: one a block would keep the heap from taking up the scores of the next.
        found = torch.empty(4, len(self.questions.targets), dtype=torch.float64, device=self.asked.device)
        for rows in self._blocks():
            scores, *ranks = ranker.scores_and_ranks(self.questions.inputs.of(rows), self.asked[rows])
            for column, values in zip(found, (*self._among_candidates(scores, rows), *ranks), strict=True):
                column[rows] = values
        sampled, losses, among_all, among_new = found
        return sampled, losses, self._full_ranks(among_all, among_new)

    def _among_candidates(
        self, scores: Float[Tensor, "B C"], rows: slice
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Ranks and losses from the scores of the targets and their candidates."""
        scores[:, 1:].masked_fill_(~self.is_candidate[rows], -torch.inf)
        return self._rank(scores[:, 0], scores[:, 1:]), (scores.logsumexp(1) - scores[:, 0]).double()

    def _in_catalogue(self, scorer: Scorer, rows: slice) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Ranks among all items, and among those not in the inputs."""
        inputs, targets = self.questions.inputs.of(rows), self.questions.targets[rows, None]
        if isinstance(scorer, CatalogueRanker):
            _, among_all, among_new = scorer.scores_and_ranks(inputs, targets)
            return among_all, among_new
        scores = scorer.catalogue_scores(inputs)
        target_scores = scores.gather(1, targets).squeeze(1)
        scores = scores.scatter(1, targets, -torch.inf)  # a target is no candidate of its own
        scores[:, PADDING] = -torch.inf
        among_all = self._rank(target_scores, scores)
        return among_all, self._rank(target_scores, scores.scatter(1, inputs.items, -torch.inf))

    def _full_ranks(
        self, among_all: Float[Tensor, " S"], among_new: Float[Tensor, " S"]
    ) -> dict[str, Float[Tensor, " S"]]:
        """By measure; a target that is not new has no rank among new items."""
        return {"full": among_all, "full_new": among_new.masked_fill(self.questions.target_repeated, torch.nan)}

    def _blocks(self) -> Iterator[slice]:
        return slices(len(self.questions.targets), SESSIONS_AT_A_TIME)

    def _rank(self, target_scores: Tensor, candidate_scores: Tensor) -> Tensor:
        try:
            return target_rank(target_scores, candidate_scores)
        except ValueError as error:
            raise TrainingDiverged(f"{self.split} evaluation: {error}") from error


def metrics_by_group(
    ranks: Float[Tensor, " S"], groups: Mapping[str, Bool[Tensor, " S"]], split: str, prefix: str = ""
) -> dict[str, float]:
    """Means of every metric over each group, with the groups' counts, and the skip gap where there are both its groups.

    Args:
        ranks: Of the targets.
        groups: Masks by name, each with a slash at its end, but for "", which is all.
        split: What names start with.
        prefix: Of the measure: "", "full_" or "full_new_".
    """
    metrics = {}
    for group, members in groups.items():
        if prefix == "full_new_" and group in ("repeat/", "new/"):  # it has new targets alone
            continue
        metrics[f"{split}{group}{prefix}count"] = float(members.sum())
        if members.any():
            for name, value in rank_metrics(ranks[members]).items():
                metrics[f"{split}{group}{prefix}{name}"] = value
    heard, skipped = (metrics.get(f"{split}{g}/{prefix}hr_at_10") for g in ("heard", "skipped"))
    if heard is not None and skipped is not None:
        metrics[f"{split}{prefix}skip_gap"] = heard - skipped
    return metrics


def metric_names(names: Sequence[str]) -> list[str]:
    """Names from data, all different, as parts of a metric's name.

    MLflow takes letters, digits, `_`, `-`, `.` and spaces, up to a length, and no part of dots alone, as in paths. A
    name that it takes stays as it is; others that would fall together are told apart by a number.
    """
    parts = [re.sub(r"[^A-Za-z0-9_. -]", "_", name)[:LONGEST_PART] for name in names]
    parts = ["_" if set(part) <= {"."} else part for part in parts]
    taken = {part for part, name in zip(parts, names, strict=True) if part == name}
    for i, (part, name) in enumerate(zip(parts, names, strict=True)):
        if part != name:
            parts[i] = next(free for n in count(1) if (free := part if n == 1 else f"{part}_{n}") not in taken)
            taken.add(parts[i])
    return parts


def joined(blocks: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Of blocks of several columns each, the columns as a whole."""
    return tuple(torch.cat(column) for column in zip(*blocks, strict=True))


def slices(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size`, of n in all."""
    for start in range(0, n, size):
        yield slice(start, start + size)


def rank_metrics(ranks: Float[Tensor, " B"]) -> Mapping[str, float]:
    """Means of hit rate, NDCG and MRR over some targets, by their names in the tracker."""
    rates = {f"hr_at_{k}": hit_rate(ranks, k).mean().item() for k in HIT_RATE_AT}
    gains = {f"ndcg_at_{k}": ndcg(ranks, k).mean().item() for k in HIT_RATE_AT}
    return rates | gains | {"mrr": mrr(ranks).mean().item()}
