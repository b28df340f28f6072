"""What several test files share: one thread, datasets by hand, a small one that went the whole road, PostgreSQL."""

import dataclasses
import itertools
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import psycopg
import pytest
import torch

from skiprec.dataset import Dataset, load_dataset
from skiprec.model import ModelConfig
from skiprec.prepare import Manifest, PrepareConfig, prepare_logs
from skiprec.reading import Reading, read_logs
from skiprec.synthetic import synthesize_logs
from skiprec.train_config import TrainConfig
from skiprec.training_loss import LossConfig

# A machine that others use as well: how long an example takes says nothing.
hypothesis.settings.register_profile("shared", deadline=None)
hypothesis.settings.load_profile("shared")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with most slow tests first: one of them begun last would keep one process at work alone."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def one_thread():
    """Sums are split by thread, so the last digits depend on how many there are."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def places_of_modules():
    """MLflow adds the code of a model that it loads, where processes that other files' tests start would find it."""
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Dataset:
    """Synthetic logs, prepared: 120 sessions of 10 to 20 items."""
    folder = tmp_path_factory.mktemp("small")
    synthesize_logs(folder / "logs", sessions=120, items=200, seed=1, progress=False)
    prepare_logs([folder / "logs"], folder / "data", progress=False)
    return load_dataset(folder / "data")


def whole_log(files: Sequence[Path], reading: Reading | None = None) -> SimpleNamespace:
    """All events of some files, with what their numbers mean."""
    with tempfile.TemporaryDirectory() as scratch:
        log = read_logs(files, reading or Reading(), Path(scratch), progress=False)
        (events,) = log.parts()
    own = {field.name: getattr(events, field.name) for field in dataclasses.fields(events)}
    own["left_out"] = dict(log.left_out + Counter(events.left_out))
    return SimpleNamespace(**own, item_ids=log.item_ids, context_types=log.context_types, sources=log.sources)


def dataset_of(
    sessions: list[list[int]],
    skip_levels: list[list[int]] | None = None,
    *,
    n_items: int,
    digest: str = "by hand",
    contexts: list[tuple[int, int]] | None = None,
    context_names: tuple[str, ...] = ("radio",),
) -> Dataset:
    """A dataset of these whole sessions, held-out items included, without files."""
    max_length = max(map(len, sessions))
    skip_levels = skip_levels or [[0] * len(session) for session in sessions]
    plays = torch.zeros(n_items + 1, dtype=torch.int64)
    for session in sessions:
        for item in session[:-2]:
            plays[item] += 1

    def padded(rows: list[list[int]], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([row + [0] * (max_length - len(row)) for row in rows], dtype=dtype)

    manifest = Manifest(
        format=1,
        settings=dataclasses.asdict(PrepareConfig(min_length=4, max_length=max_length)),
        sources=[],
        counts={},
        dropped={},
        digests={"sessions": "", "items": "", "dataset": digest},
    )
    return Dataset(
        path=Path("by hand"),
        manifest=manifest,
        items=padded(sessions, torch.int64),
        skip_levels=padded(skip_levels, torch.int8),
        lengths=torch.tensor([len(session) for session in sessions]),
        plays=plays,
        held_out_contexts=torch.tensor(contexts or [(0, 0)] * len(sessions)),
        context_names=context_names,
    )


def small_config(**changes) -> TrainConfig:
    """A model that trains in a blink. Names are those of a flat configuration, told apart by the config they are in."""
    parts = {
        ModelConfig: {"dim": 16, "n_layers": 1, "n_heads": 2, "feed_forward": 16},
        LossConfig: {"n_negatives": 20},
        TrainConfig: {"seed": 1, "batch_size": 32, "max_epochs": 3, "patience": 2, "learning_rate": 0.01},
    }
    for name, value in changes.items():
        (home,) = (cls for cls in parts if name in {field.name for field in dataclasses.fields(cls)})
        parts[home][name] = value
    return TrainConfig(
        **parts[TrainConfig], model=ModelConfig(**parts[ModelConfig]), loss=LossConfig(**parts[LossConfig])
    )


def hear_ctrl_c() -> None:
    """For `preexec_fn`: what a shell starts in the background is born deaf to SIGINT, and so is what that starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


POSTGRESQL = Path(__file__).parent.parent / "scripts" / "postgresql.sh"


def postgresql(action: str, folder: Path) -> subprocess.CompletedProcess:
    """Start or stop a server."""
    return subprocess.run(["bash", POSTGRESQL, action, folder], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[Path]:
    """The folder of a PostgreSQL server of this process's own, whose password is known to what it starts."""
    # Not pytest's folder: as root's, that is out of reach for the user whom the server runs as.
    with tempfile.TemporaryDirectory(prefix="skiprec-postgresql-") as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        started = postgresql("start", folder)
        if started.returncode == 3:
            pytest.skip(started.stderr.strip())
        assert started.returncode == 0, started.stderr
        patch.setenv("PGPASSFILE", str(folder / "pgpass"))
        yield folder
        postgresql("stop", folder)


@pytest.fixture(scope="session")
def new_database(postgresql_server) -> Callable[[], str]:
    """What makes an empty database and gives its address."""
    server = (postgresql_server / "url").read_text().strip()
    numbers = itertools.count(1)

    def make() -> str:
        name = f"test_{next(numbers)}"
        with psycopg.connect(server.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"{server.rpartition('/')[0]}/{name}"

    return make
