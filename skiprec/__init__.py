"""skiprec: next-track recommendation that learns from skips. Public names load when they are first used."""

import importlib
import os

__version__ = "0.3.0"

# Read by PyTorch's OpenMP (GNU's) when it is loaded. Its threads wait busily for each other, by default for some 5 ms;
# where other programs want the cores, the one waited for is kept from its core meanwhile, and a step takes 30 times as
# long. After .03 ms they let go of it.
if "OMP_WAIT_POLICY" not in os.environ:  # which says the same in general, and is the user's
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

_HOMES = {
    "Dataset": "dataset",
    "EpochResult": "trainer",
    "LossConfig": "training_loss",
    "Manifest": "prepare",
    "ModelConfig": "model",
    "PrepareConfig": "prepare",
    "Recommender": "recommend",
    "Run": "run",
    "SequenceEncoder": "model",
    "TrainConfig": "train_config",
    "Trainer": "trainer",
    "load_dataset": "dataset",
    "prepare_logs": "prepare",
    "synthesize_logs": "synthetic",
}

_MODULES = ("dataset", "losses", "metrics", "negatives", "prepare", "trainer")

__all__ = [*_HOMES, *_MODULES]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f"skiprec.{_HOMES[name]}"), name)
    if name in _MODULES:  # so that `skiprec.losses.masked_info_nce` needs no import of its own
        return importlib.import_module(f"skiprec.{name}")
    raise AttributeError(f"module 'skiprec' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
