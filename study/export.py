"""The best model of a study, or of one run, as an MLflow model that serves: what `study export` does."""

import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import mlflow.pyfunc
import pandas as pd
import torch
from mlflow import MlflowClient

import skiprec
import study as harness
from skiprec.checkpoint import load_checkpoint
from skiprec.config import from_flat
from skiprec.dataset import Dataset, load_dataset
from skiprec.errors import CheckpointError
from skiprec.files import new_folder, refuse_existing, write_file
from skiprec.linear import without_onednn
from skiprec.model import SequenceEncoder
from skiprec.model_folder import write_model
from skiprec.recommend import Recommender, scores_of_indices
from skiprec.run import BEST, METRICS, load_model, read_record
from study.analysis import Analysis, analyse, percent
from study.model_card import Candidate, card, confirmed_rates, group_rates, validation_rates
from study.sending import find_run
from study.serving import SIGNATURE, Served
from study.storage import Places
from study.tracking import read_ranks, study_errors, tracked_study

MODULES = (
    "__init__",
    "best_items",
    "checking",
    "checkpoint",
    "device",
    "encoder_block",
    "errors",
    "files",
    "large_file",
    "linear",
    "model",
    "model_folder",
    "recommend",
    "requests",
    "row_kernels",
    "schema",
)
"""Of skiprec, what an exported model needs: it carries them, so that it loads where this program is not installed."""
OF_STUDY = ("__init__", "serving")
PACKAGES = ("torch", "numpy", "pandas", "pyarrow", "safetensors", "jaxtyping", "numba", "mlflow")
PROGRAM = "scores.pt2"
CARD = "model_card.md"
ALIKE = 1e-5
"""Scores of an export may differ by so much from the model's."""


def export_study(
    where: Places,
    name: str | None,
    out: Path,
    *,
    data: Path | None = None,
    register: str | None = None,
    program: bool = False,
) -> list[str]:
    """Write the best model of a study as an MLflow model.

    Args:
        where: The study's databases.
        name: Of the study; may be None where there is only one.
        out: The folder to make.
        data: The dataset folder, if it is no longer where it was.
        register: A name in MLflow's model registry, which gets it as a new version.
        program: Also write what torch.export makes of it.

    Returns:
        What was made, in a line each.

    Raises:
        OutputError: If `out` exists, or cannot be written; then nothing is left there.
        StudyError: If there is no such study, no cell of it is complete, or a database failed.
    """
    refuse_existing(out)
    with study_errors(where):
        study, confirming, client = tracked_study(where, name)
        attrs, experiment = study.user_attrs, study.user_attrs["experiment_id"]
        found = analyse(
            study,
            confirming,
            lambda run: read_ranks(client, run.run_id or find_run(client, experiment, run.run_key), "test"),
        )
        dataset = load_dataset(data or Path(attrs["dataset"]))
        write(best_candidate(found, client, experiment, dataset), out, program)
        made = [f"wrote {out}"]
        if register:
            client.log_artifacts(attrs["parent_run"], str(out), "exported_model")
            made.append(registered(client, attrs["parent_run"], register))
    return made


def export_run(folder: Path, out: Path, *, data: Path | None = None, program: bool = False) -> list[str]:
    """Write the model of one training (`skiprec train`) as an MLflow model.

    Args:
        folder: The run's.
        out: The folder to make.
        data: The dataset folder, if it is no longer where it was.
        program: Also write what torch.export makes of it.

    Returns:
        What was made, in a line each.

    Raises:
        ConfigError: If the folder holds no finished run.
        DatasetError, CheckpointError: If data or weights are missing, changed, or of others.
        OutputError: If `out` exists, or cannot be written; then nothing is left there.
    """
    refuse_existing(out)
    dataset = load_dataset(data or Path(read_record(folder)["dataset"]))
    model, about = load_model(folder, dataset)
    metrics = pd.read_json(folder / METRICS, typ="series").to_dict()
    candidate = Candidate(
        model=model,
        config=about["config"],
        dataset=dataset,
        epoch=about["epoch"],
        name=folder.resolve().name,
        origin="One training; its epoch was chosen by validation HR@10.",
        measured="Hit rates on validation, by which the epoch was chosen, so they flatter. Test was not read.",
        rates=validation_rates(metrics),
        groups=group_rates(metrics, "val"),
    )
    write(candidate, out, program)
    return [f"wrote {out}"]


def best_candidate(found: Analysis, client: MlflowClient, experiment: str, dataset: Dataset) -> Candidate:
    """The model that a study recommends: chosen by validation alone."""
    if found.confirmed:
        arm = found.confirmed.best
        run = max(arm.runs, key=lambda cell: cell.value)
        seeds = len(arm.runs)
        origin = (
            f"From the study {found.name}: the arm “{arm.name}”, which has the highest mean validation HR@10 over "
            f"{seeds} confirming seeds ({percent(arm.validation)}), and of these seeds the one that validation prefers "
            f"(seed {run.seed}). Test chose nothing."
        )
        measured = (
            f"Hit rates on test, of the arm over {seeds} seeds and {found.confirmed.n_sessions:,} sessions, with 95% "
            "intervals for other seeds and other sessions. The exported model is one of these seeds."
        )
        rates = confirmed_rates(arm.rates)
        groups = group_rates(run.metrics, "test")
    else:
        run = found.best
        origin = (
            f"From the study {found.name}, which is not confirmed: its best cell by validation HR@10 (arm “{run.arm}”, "
            f"trial {run.trial}), a single run. `study confirm` would say how sure that is."
        )
        measured = "Hit rates on validation, by which it was chosen among many, so they flatter. Test was not read."
        rates, groups = validation_rates(run.metrics), group_rates(run.metrics, "val")
    with tempfile.TemporaryDirectory() as folder:
        run_id = run.run_id or find_run(client, experiment, run.run_key)
        path = Path(client.download_artifacts(run_id, BEST, folder))
        tensors, about = load_checkpoint(path, dataset_digest=dataset.digest)
    model = SequenceEncoder(from_flat(about["config"]).model, dataset.n_items, dataset.max_length)
    model.load_state_dict(tensors)
    return Candidate(
        model=model.eval(),
        config=about["config"],
        dataset=dataset,
        epoch=about["epoch"],
        name=found.name,
        origin=origin,
        measured=measured,
        rates=rates,
        groups=groups,
    )


def write(candidate: Candidate, out: Path, program: bool) -> None:
    """Write the MLflow model, load it once, and have it answer its own example."""
    dataset = candidate.dataset
    sizes = {"max_length": dataset.max_length, "skip_threshold": dataset.manifest.config.skip_threshold}
    about = {"config": dict(candidate.config), "dataset_digest": dataset.digest, "epoch": candidate.epoch}
    ids = dataset.item_ids()
    with tempfile.TemporaryDirectory() as name, new_folder(out) as beside:
        folder = Path(name) / "model"
        folder.mkdir()
        write_model(
            folder, candidate.model, from_flat(dict(candidate.config)).model, ids, about=about | origin_of(), **sizes
        )
        Served(Recommender.load(folder)).predict(example(ids), {"k": 1})
        mlflow.pyfunc.save_model(
            path=str(beside),
            loader_module="study.serving",
            data_path=str(folder),
            code_paths=[str(path) for path in copied_modules(Path(name))],
            signature=SIGNATURE,
            input_example=(example(ids), {"k": 5}),
            pip_requirements=[f"{package}=={version(package).partition('+')[0]}" for package in PACKAGES],
            metadata={"dataset_digest": dataset.digest},
        )
        for cache in beside.rglob("__pycache__"):
            shutil.rmtree(cache)
        if program:
            write_program(candidate.model, beside / PROGRAM, dataset.max_length)
        write_file(beside / CARD, card(candidate, has_program=program))


def origin_of() -> dict[str, str]:
    """The program's version, as the model's file keeps it."""
    return {"skiprec": skiprec.__version__}


def copied_modules(folder: Path) -> list[Path]:
    """The few modules that a model is loaded with, as packages of their own."""
    made = []
    for package, modules in ((skiprec, MODULES), (harness, OF_STUDY)):
        source = Path(package.__file__).parent
        target = folder / source.name
        target.mkdir()
        for module in modules:
            shutil.copy(source / f"{module}.py", target)
        made.append(target)
    return made


def example(ids: Sequence[str]) -> pd.DataFrame:
    """Two sessions of the catalogue's first items; in the first one the second was skipped."""
    one, two = list(ids[:3]), list(ids[:1])
    return pd.DataFrame({"items": [one, two], "skip_levels": [[0, 2, 0][: len(one)], [0]]})


def write_program(model: SequenceEncoder, path: Path, max_length: int) -> None:
    """Write what torch.export makes of the model, when it gives the model's scores.

    Raises:
        CheckpointError: If it does not.
    """

    class Scores(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, items: torch.Tensor, lengths: torch.Tensor, skip_levels: torch.Tensor) -> torch.Tensor:
            return scores_of_indices(self.model, items, lengths, skip_levels)

    lengths = torch.tensor([max_length, max(1, max_length // 2), 1])
    items = 1 + torch.arange(3 * max_length).reshape(3, max_length) % model.n_items
    items = items * (torch.arange(max_length) < lengths[:, None])
    inputs = (items, lengths, 2 * (items % 2))
    sessions = torch.export.Dim("sessions", min=1, max=4096)
    with torch.no_grad():
        made = torch.export.export(Scores().eval(), inputs, dynamic_shapes=({0: sessions},) * 3)
        for n in (1, 3):
            some = tuple(x[:n] for x in inputs)
            with without_onednn():
                is_alike = torch.allclose(made.module()(*some), scores_of_indices(model, *some), rtol=ALIKE, atol=ALIKE)
            if not is_alike:
                raise CheckpointError(f"{path}: torch.export's program gives other scores than the model; not written")
    torch.export.save(made, path)


def registered(client: MlflowClient, run_id: str, name: str) -> str:
    """Make a version of a registered model of what a run has as its exported model; say which."""
    if not client.search_registered_models(f"name = '{name}'" if "'" not in name else f'name = "{name}"'):
        client.create_registered_model(name)
    source = f"{client.get_run(run_id).info.artifact_uri}/exported_model"
    made = client.create_model_version(name, source, run_id)
    return f"registered {name}, version {made.version}"
