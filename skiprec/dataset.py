"""A prepared dataset folder -> tensors: whole sessions, the part that is trained on, and what is held out."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float32, Int8, Int32, Int64
from torch import Tensor

from skiprec.digests import columns_of, combined, features_digest, table_digests
from skiprec.errors import DatasetError
from skiprec.features import skip_differences
from skiprec.prepare import N_HELD_OUT, Manifest, within
from skiprec.schema import ITEMS, PADDING, SESSIONS
from skiprec.splits import TEST, TRAIN, VAL, temporal_parts

# S sessions, T positions (padding on the right), L the dataset's max_length.

Split = Literal["val", "test"]
D = TypeVar("D", bound="Sessions | HeldOut")


@dataclass(frozen=True)
class Sessions:
    """The first items of each session, as a model may see them."""

    items: Int64[Tensor, "S T"]
    """Item indices, 0 where padding."""
    skip_levels: Int8[Tensor, "S T"]
    """0 to 3; 0 where padding."""
    skipped: Bool[Tensor, "S T"]
    """False where padding."""
    lengths: Int64[Tensor, " S"]

    def of(self, rows: slice | Int64[Tensor, " n"]) -> "Sessions":
        """Some of them."""
        return Sessions(self.items[rows], self.skip_levels[rows], self.skipped[rows], self.lengths[rows])

    def to(self, device: torch.device | str) -> "Sessions":
        """The same on another device."""
        return moved(self, device)


@dataclass(frozen=True)
class HeldOut:
    """One held-out target a session that is asked about, and what is known when it is to be predicted."""

    inputs: Sessions
    """All items before the target. T is one less for val than for test, unless the split is temporal."""
    targets: Int64[Tensor, " S"]
    target_skipped: Bool[Tensor, " S"]
    target_repeated: Bool[Tensor, " S"]
    """The target occurs in the inputs."""
    target_context: Int64[Tensor, " S"]
    """The context type of the target's row: an index into the dataset's names."""
    target_third: Int64[Tensor, " S"]
    """0, 1 or 2: the target is among the items that carry the first, second or last third of training plays."""
    session_lengths: Int64[Tensor, " S"]
    """Of the whole session, held-out items included."""

    def to(self, device: torch.device | str) -> "HeldOut":
        """The same on another device."""
        return moved(self, device)


@dataclass(frozen=True)
class Dataset:
    """Everything of a dataset folder that models need, on the CPU. Holds held-out rows: models take the parts below."""

    path: Path
    manifest: Manifest
    items: Int64[Tensor, "S L"]
    """Item indices, 0 where padding."""
    skip_levels: Int8[Tensor, "S L"]
    """0 to 3; 0 where padding."""
    lengths: Int64[Tensor, " S"]
    plays: Int64[Tensor, " n_items_and_padding"]
    """How often an item index occurs in the training prefixes."""
    held_out_contexts: Int64[Tensor, "S 2"]
    """Context types of the validation and the test target: indices into the names."""
    context_names: tuple[str, ...]
    parts: Int8[Tensor, " S"] | None = None
    """Of the temporal split: TRAIN, VAL or TEST of `splits`. None where each session has its own held-out items."""
    features: Mapping[str, Float32[np.ndarray, " R"]] = field(default_factory=dict)
    """Numbers that are known of items, for description and groups: by item index, NaN where not known."""

    def some(self, n: int) -> "Dataset":
        """At most n sessions, spread evenly over all, with the whole catalogue."""
        n = min(n, self.n_sessions)
        rows = torch.arange(n) * self.n_sessions // n
        names = ("items", "skip_levels", "lengths", "held_out_contexts", *(["parts"] if self.parts is not None else []))
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in names})

    def asked(self, split: Split) -> slice | Int64[Tensor, " n"]:
        """The sessions that a split asks about."""
        return slice(None) if self.parts is None else (self.parts == {"val": VAL, "test": TEST}[split]).nonzero()[:, 0]

    @property
    def n_sessions(self) -> int:
        """S."""
        return len(self.lengths)

    @property
    def n_items(self) -> int:
        """Size of the catalogue, padding not counted."""
        return len(self.plays) - 1

    @property
    def max_length(self) -> int:
        """The most items that a session may have: L, also where no session has as many."""
        return self.manifest.config.max_length

    @property
    def digest(self) -> str:
        """What the dataset is known by."""
        return self.manifest.digest

    @property
    def skipped(self) -> Bool[Tensor, "S L"]:
        """Where the skip level reaches the dataset's threshold."""
        return self.skip_levels >= self.manifest.config.skip_threshold

    def item_ids(self) -> list[str]:
        """The log's own ids; item_index i is at i - 1."""
        return read_table(self.path / "items.parquet", ITEMS)["item_id"].to_pylist()


def load_dataset(path: str | Path) -> Dataset:
    """Read a dataset folder and check that it is as it was prepared.

    Raises:
        DatasetError: If it is not a dataset folder, or one of its files was changed.
    """
    path = Path(path)
    manifest = Manifest.read(path)
    sessions = read_table(path / "sessions.parquet", SESSIONS)
    items = read_table(path / "items.parquet", ITEMS)
    check_digests(path, manifest, sessions, items)

    lists = combined(sessions["items"])
    lengths = np.diff(lists.offsets.to_numpy()).astype(np.int64)
    max_length = manifest.config.max_length
    cells = within(np.arange(len(lengths)) * max_length, lengths)  # of the padded table, row after row
    contexts, ends = combined(sessions["contexts"]).flatten(), lengths.cumsum()

    def padded(values: pa.Array, dtype: type) -> Tensor:
        table = np.full(len(lengths) * max_length, PADDING, dtype=dtype)
        table[cells] = values.to_numpy()
        return torch.from_numpy(table.reshape(len(lengths), max_length))

    return Dataset(
        path=path,
        manifest=manifest,
        items=padded(lists.flatten(), np.int64),
        skip_levels=padded(combined(sessions["skip_levels"]).flatten(), np.int8),
        lengths=torch.from_numpy(lengths),
        plays=torch.from_numpy(np.concatenate([[0], combined(items["plays"]).to_numpy()])),
        held_out_contexts=torch.from_numpy(contexts.indices.to_numpy()[ends[:, None] + [-2, -1]].astype(np.int64)),
        context_names=tuple(contexts.dictionary.to_pylist()),
        parts=torch.from_numpy(temporal_parts(days_of(sessions))) if manifest.config.split == "temporal" else None,
        features=load_features(path, manifest, len(items)) if "features" in manifest.digests else {},
    )


def load_features(path: Path, manifest: Manifest, n_items: int) -> dict[str, Float32[np.ndarray, " R"]]:
    """The features of a dataset folder that has some.

    Raises:
        DatasetError: If the file cannot be read, or was changed.
    """
    file = path / "features.parquet"
    try:
        table = pq.read_table(file)
        is_whole = len(table) == n_items and all(field.type == pa.float32() for field in list(table.schema)[1:])
        is_whole = is_whole and features_digest(table) == manifest.digests["features"]
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DatasetError(f"{file}: cannot be read ({reason}); prepare the logs again") from error
    if not is_whole:
        raise DatasetError(f"{file}: was changed after preparing; prepare the logs again")
    padding = np.full(1, np.nan, dtype=np.float32)
    return {
        name: np.concatenate([padding, combined(table[name]).to_numpy(zero_copy_only=False).astype(np.float32)])
        for name in table.column_names[1:]
    }


def days_of(sessions: pa.Table) -> Int32[np.ndarray, " S"]:
    """The date of each session's first row, in days since 1970."""
    return combined(sessions["date"]).cast(pa.int32()).to_numpy()


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """A parquet file of exactly this schema.

    Raises:
        DatasetError: If it cannot be read, or is another table.
    """
    try:
        with pq.ParquetFile(path) as file:
            # One at a time: pyarrow cannot read lists of dictionaries that lie in several row groups.
            groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
            table = pa.concat_tables(groups) if groups else file.schema_arrow.empty_table()
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DatasetError(
            f"{path}: cannot be read ({reason}), expected the table as prepared; prepare the logs again"
        ) from error
    if not table.schema.equals(schema):
        raise DatasetError(
            f"{path}: has columns {', '.join(f'{c.name} {c.type}' for c in table.schema)}, "
            f"expected {', '.join(f'{c.name} {c.type}' for c in schema)}; prepare the logs again"
        )
    if nulls := [name for name in table.column_names if table[name].null_count]:
        raise DatasetError(f"{path}: {nulls[0]} has missing values, expected none; prepare the logs again")
    return table


def check_digests(path: Path, manifest: Manifest, sessions: pa.Table, items: pa.Table) -> None:
    """Refuse a folder that was changed after preparing."""
    for name in ("sessions", "items"):
        n_rows = len(sessions if name == "sessions" else items)
        if n_rows != manifest.counts.get(name):
            raise DatasetError(
                f"{path / name}.parquet: has {n_rows} rows, expected {manifest.counts.get(name)} by manifest.json: "
                "one of the two was changed after preparing; prepare the logs again"
            )
    try:
        digests = table_digests(columns_of(sessions), items, manifest.settings)
    except pa.ArrowException as error:  # a missing value inside a list
        raise DatasetError(f"{path / 'sessions.parquet'}: {error}; prepare the logs again") from error
    for name, file in (("sessions", "sessions.parquet"), ("items", "items.parquet"), ("dataset", "manifest.json")):
        if digests[name] != manifest.digests[name]:
            raise DatasetError(
                f"{path / file}: was changed after preparing: digest {digests[name][:12]}, "
                f"expected {manifest.digests[name][:12]}; prepare the logs again"
            )


def first_items(dataset: Dataset, held_back: int) -> Sessions:
    """Each session without its last `held_back` items."""
    lengths = dataset.lengths - held_back
    width = dataset.max_length - held_back
    is_real = torch.arange(width) < lengths[:, None]
    return Sessions(
        items=dataset.items[:, :width].masked_fill(~is_real, PADDING),
        skip_levels=dataset.skip_levels[:, :width].masked_fill(~is_real, 0),
        skipped=dataset.skipped[:, :width] & is_real,
        lengths=lengths,
    )


def training_prefix(dataset: Dataset) -> Sessions:
    """All that training may see: items 1..K-2 of each session of K, or the whole sessions of the first days."""
    if dataset.parts is not None:
        return first_items(dataset, 0).of((dataset.parts == TRAIN).nonzero()[:, 0])
    return first_items(dataset, N_HELD_OUT)


def held_out(dataset: Dataset, split: Split) -> HeldOut:
    """What is predicted: item K-1 of each session of K from those before it (val), or item K (test).

    By the temporal split, item K of each session of the validation days, or of the test days.
    """
    held_back = 2 if split == "val" and dataset.parts is None else 1
    rows = dataset.asked(split)
    inputs = first_items(dataset, held_back).of(rows)
    at = inputs.lengths[:, None]  # the target comes right after the inputs
    targets = dataset.items[rows].gather(1, at)  # (n, 1)
    return HeldOut(
        inputs=inputs,
        targets=targets.squeeze(1),
        target_skipped=dataset.skipped[rows].gather(1, at).squeeze(1),
        target_repeated=(inputs.items == targets).any(1),
        target_context=dataset.held_out_contexts[rows, -held_back],
        target_third=popularity_thirds(dataset.plays)[targets.squeeze(1)],
        session_lengths=dataset.lengths[rows],
    )


def feature_differences(dataset: Dataset) -> dict[str, float]:
    """By feature what `skip_differences` finds in the training prefixes: those first that tell most of skips."""
    if not dataset.features:
        return {}
    prefix = training_prefix(dataset)
    is_real = prefix.items != PADDING
    return skip_differences(dataset.features, prefix.items[is_real].numpy(), prefix.skipped[is_real].numpy())


def popularity_thirds(plays: Int64[Tensor, " R"]) -> Int64[Tensor, " R"]:
    """Of each item whether it is among those that carry the first (0), second (1) or last (2) third of the plays.

    Items are taken by falling plays, equal ones by index. An item belongs where its first play falls, so one that holds
    half of all plays is in the first third; items that were never played are in the last. Padding's has no meaning.
    """
    order = plays.sort(descending=True, stable=True).indices
    before = plays[order].cumsum(0) - plays[order]
    thirds = torch.empty_like(plays)
    thirds[order] = (3 * before // plays.sum()).clamp(max=2)  # all plays are before an item that has none
    return thirds


def moved(part: D, device: torch.device | str) -> D:
    """A dataclass of tensors and of such dataclasses, on another device."""
    return dataclasses.replace(
        part, **{field.name: getattr(part, field.name).to(device) for field in dataclasses.fields(part)}
    )
