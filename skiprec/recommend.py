"""A trained model that recommends: sessions in the log's own ids -> the next tracks with scores.

Loaded once, it answers one session or many. Needs nothing of what trains.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from skiprec.best_items import Best, best_items, outline_of
from skiprec.device import one_thread
from skiprec.errors import CheckpointError, RequestError
from skiprec.model import SequenceEncoder
from skiprec.model_folder import MODEL, read_model
from skiprec.requests import Session, checked_count, checked_session
from skiprec.schema import PADDING

# B sessions asked about at once, T positions, D embedding width, R items in the catalogue.

SESSIONS_AT_ONCE = 128
"""That share a pass over the item table: more would hardly be faster."""
Exclude = Literal["session", "skipped", "heard", "nothing"]
EXCLUDE = get_args(Exclude)


@dataclass(frozen=True, slots=True)
class Recommended:
    """What may come next."""

    items: list[str]
    """The best first. None where no item of the session is known; fewer than asked for where no more are left."""
    scores: list[float]
    """Inner products: of one session's items, the higher is the more likely. Not probabilities."""
    unknown: list[str]
    """Items of the session that the model was not trained on: they were left out of it."""


def served(path: Path) -> Path | None:
    """The model's folder: in what `study export` wrote, or the path itself where it is one; else None.

    Raises:
        CheckpointError: If it leads out of what was exported.
    """
    if (path / MODEL).exists():
        return path
    folder = path / "data" / "model"
    if not (folder / MODEL).exists():
        return None
    if folder.resolve() != path.resolve() / "data" / "model":
        raise CheckpointError(f"{folder}: leads to {folder.resolve()}, outside of {path}; expected a folder in it")
    return folder


class Recommender:
    """Answers sessions, one or many at a time.

    Args:
        model: The encoder, on the device that is to be used.
        item_ids: The log's own ids; item_index i is at i - 1.
        max_length: Longest session of the data; of a longer one the last items count.
        skip_threshold: The level that `True` stands for, and from which a position is skipped.
        about: What the model says of itself.
    """

    def __init__(
        self,
        model: SequenceEncoder,
        item_ids: Sequence[str],
        *,
        max_length: int,
        skip_threshold: int,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model.eval()
        self.item_ids = list(item_ids)
        self.index = {item: i for i, item in enumerate(self.item_ids, start=1)}
        self.max_length = max_length
        self.skip_threshold = skip_threshold
        self.about = dict(about or {})
        self.table = model.items.weight.detach()[1 : model.n_items + 1]  # (R, D)
        is_here = self.table.device.type == "cpu" and self.table.dtype == torch.float32
        self.outline = outline_of(self.table) if is_here else None
        self.threads = torch.get_num_threads()  # asked once: in a thread that a server starts it may be another number

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> "Recommender":
        """Read a model folder, as `write_model` or `study export` makes it.

        Raises:
            CheckpointError: If a file is missing, damaged, of another model, or lies outside of the folder.
        """
        model, item_ids, about = read_model(Path(folder))
        sizes = {"max_length": about["max_length"], "skip_threshold": about["skip_threshold"]}
        return cls(model.to(device), item_ids, **sizes, about=about)

    @no_type_check  # what is sent may be anything: it is checked, and refused as a request
    def recommend(
        self,
        items: Sequence[str],
        skip_levels: Sequence[int | bool] | None = None,
        *,
        k: int = 20,
        exclude: Exclude = "session",
    ) -> Recommended:
        """The k best next items of one session; see `recommend_many`."""
        return self.recommend_many([Session(items, skip_levels)], k=k, exclude=exclude)[0]

    @no_type_check
    @torch.inference_mode()
    def recommend_many(
        self, sessions: Sequence[Session], *, k: int = 20, exclude: Exclude = "session"
    ) -> list[Recommended]:
        """The k best next items of each session.

        Args:
            sessions: What was played so far.
            k: How many.
            exclude: "session": nothing that the session has already. "skipped" or "heard": only that stays out.
                "nothing": a model then puts the session's own items first, as training never drew them as negatives.

        Raises:
            RequestError: If a session is not as it should be, or an argument is out of range.
        """
        k = checked_count(k)
        if not isinstance(exclude, str) or exclude not in EXCLUDE:
            raise RequestError(f"exclude is {exclude!r}, expected one of {', '.join(EXCLUDE)}")
        known, unknown = [], []
        for number, session in enumerate(sessions, start=1):
            items, levels = checked_session(session, f"session {number}", self.skip_threshold)
            known.append([(self.index[i], level) for i, level in zip(items, levels, strict=True) if i in self.index])
            unknown.append([item for item in items if item not in self.index])
        found = [Recommended([], [], [])] * len(known)
        asked = [row for row, plays in enumerate(known) if plays]
        for start in range(0, len(asked), SESSIONS_AT_ONCE):
            rows = asked[start : start + SESSIONS_AT_ONCE]
            best = self._best([known[row] for row in rows], k, exclude)
            for row, (places, scores) in zip(rows, best, strict=True):
                found[row] = Recommended([self.item_ids[i] for i in places], scores, [])
        return [dataclasses.replace(one, unknown=left_out) for one, left_out in zip(found, unknown, strict=True)]

    def predicted(self, sessions: Sequence[Sequence[tuple[int, int]]]) -> Float[Tensor, "B D"]:
        """What is expected next: an item's score is the inner product with its embedding.

        Args:
            sessions: Item indices with their skip levels; none is empty.
        """
        items, levels, lengths = self._padded([session[-self.max_length :] for session in sessions])
        with one_thread():  # many small operations
            return self.model.next_item(items, lengths, levels)

    def _padded(self, sessions: Sequence[Sequence[tuple[int, int]]]) -> tuple[Tensor, Tensor, Tensor]:
        width = max(map(len, sessions))
        items, levels = np.full((len(sessions), width), PADDING), np.zeros((len(sessions), width), dtype=np.int8)
        for row, session in enumerate(sessions):
            items[row, : len(session)], levels[row, : len(session)] = zip(*session, strict=True)
        lengths = torch.tensor([len(session) for session in sessions])
        device = self.table.device
        return torch.from_numpy(items).to(device), torch.from_numpy(levels).to(device), lengths.to(device)

    def _best(self, sessions: list[list[tuple[int, int]]], k: int, exclude: str) -> list[Best]:
        """Places in item_ids and scores of the k best of each session."""
        left_out = [[item - 1 for item, level in own if self._is_out(level, exclude)] for own in sessions]
        predicted = self.predicted(sessions)
        return best_items(self.table, predicted, left_out, k, threads=self.threads, outline=self.outline)

    def _is_out(self, level: int, exclude: str) -> bool:
        """Whether an item that was played so is not to be recommended."""
        is_skipped = level >= self.skip_threshold
        return {"session": True, "skipped": is_skipped, "heard": not is_skipped, "nothing": False}[exclude]


def scores_of_indices(
    model: SequenceEncoder,
    items: Int[Tensor, "B T"],
    lengths: Int[Tensor, " B"],
    skip_levels: Int[Tensor, "B T"],
) -> Float[Tensor, "B R"]:
    """Scores of every item, by item_index less 1, from tensors alone: what is exported for services without Python."""
    return model.next_item(items, lengths, skip_levels) @ model.items.weight[1 : model.n_items + 1].T
