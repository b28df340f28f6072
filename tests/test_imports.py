"""What is loaded when: the library alone is light, and never knows the study's tools."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import skiprec

HEAVY = ("torch", "optuna", "mlflow", "matplotlib", "pandas")
PACKAGE = Path(skiprec.__file__).parent

SHOW_LOADED = f"import sys; print([name for name in {HEAVY} if name in sys.modules])"


def loaded_after(code: str) -> list[str]:
    """Which of the heavy ones a fresh interpreter has loaded after running this."""
    done = subprocess.run([sys.executable, "-c", f"{code}\n{SHOW_LOADED}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout.splitlines()[-1])


def test_importing_skiprec_loads_nothing_heavy():
    assert loaded_after("import skiprec; dir(skiprec); skiprec.__version__") == []


def test_using_the_trainer_loads_torch_and_nothing_of_the_study():
    loaded = loaded_after("import skiprec; skiprec.Trainer; skiprec.Run; skiprec.prepare_logs; skiprec.synthesize_logs")
    assert "torch" in loaded
    assert not {"optuna", "mlflow", "matplotlib"} & set(loaded)


WATCH_TORCH = """
import os, sys
class Watch:
    def find_spec(name, path=None, target=None):
        if name == "torch":
            print("torch after", os.environ.get("GOMP_SPINCOUNT"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Watch)
"""


@pytest.mark.parametrize("module", ["skiprec.trainer", "skiprec.cli", "study.worker", "study.objective", "study.run"])
def test_how_long_threads_wait_is_said_before_torch_is_loaded(module):
    """OpenMP reads it once. What the user says of it stays."""
    said = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in said}
    code = f"{WATCH_TORCH}\nimport {module}, torch"
    for given, expected in (
        ({}, "2000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "passive"}, "None"),
    ):
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment | given, capture_output=True, text=True, timeout=120)
        assert done.stdout.split() == ["torch", "after", expected], done.stderr


HELP = """
import runpy, sys
sys.argv = ["skiprec", "--help"]
try:
    {run}
except SystemExit as end:
    assert end.code == 0, end.code
"""


def test_help_loads_nothing_heavy():
    assert loaded_after(HELP.format(run="from skiprec.cli import main; main()")) == []


def test_help_of_the_module_loads_nothing_heavy():
    assert loaded_after(HELP.format(run='runpy.run_module("skiprec", run_name="__main__")')) == []


STATUS = """
from datetime import datetime
from pathlib import Path
import optuna
from study import cli
from study.locks import make_schema
from study.queue import enqueue, planned_cells
from study.storage import open_storage, places
where = places(Path({mlruns!r}), None, None)
make_schema(where)
study = optuna.create_study(study_name="tiny", storage=open_storage(where), direction="maximize")
cells = {{"a": {{"arm": "S-", "seed": 1, "params": {{"alpha": 0.0}}}}}}
recipe = {{"max_attempts": 2, "settings": {{"patience": 1, "max_epochs": 2}}, "arms": {{"S-": {{}}}}}}
for key, value in {{"recipe": recipe, "defaults": {{}}, "cells": cells, "grace_seconds": 9.0}}.items():
    study.set_user_attr(key, value)
enqueue(study, planned_cells(study)[0], 1)
cli.status(mlruns=Path({mlruns!r}))
"""


def test_status_loads_neither_torch_nor_mlflow(tmp_path):
    """Of a study with a cell that waits: it is what people ask again and again while they wait."""
    assert not {"torch", "mlflow", "matplotlib"} & set(loaded_after(STATUS.format(mlruns=str(tmp_path / "mlruns"))))


def imported_by(file: Path) -> set[str]:
    """The packages that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def test_no_file_of_skiprec_imports_the_study_or_its_tools():
    files = sorted(PACKAGE.glob("**/*.py"))
    assert len(files) > 20
    banned = {"study", "optuna", "mlflow", "matplotlib", "sqlalchemy", "seaborn", "plotly"}
    assert {file.name: imported_by(file) & banned for file in files if imported_by(file) & banned} == {}


def test_every_public_name_is_there():
    for name in skiprec.__all__:
        assert getattr(skiprec, name).__name__.removeprefix("skiprec.") == name
    assert set(skiprec.__all__) <= set(dir(skiprec))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError) as caught:
        skiprec.NoSuchThing  # noqa: B018
    assert str(caught.value) == "module 'skiprec' has no attribute 'NoSuchThing'"


def test_the_public_names_are_reached_from_the_packages_themselves():
    """Without importing their modules first; and `import study` alone loads neither torch nor Optuna nor MLflow."""
    code = """
import sys, skiprec, study
assert not {"torch", "optuna", "mlflow"} & set(sys.modules), "loaded too early"
assert skiprec.losses.masked_info_nce and skiprec.metrics.target_rank and skiprec.Trainer
assert study.launch.__module__ == "study.run" and study.StudyHandle
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_exported_model_carries_all_that_it_is_loaded_with():
    """What its loader imports at once: `test_export.py` loads a model, and takes a minute."""
    from study.export import MODULES, OF_STUDY

    code = "import sys, study.serving; print(*(m for m in sys.modules if m.startswith(('skiprec.', 'study.'))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "skiprec.model" in loaded
    assert loaded <= {f"skiprec.{m}" for m in MODULES} | {f"study.{m}" for m in OF_STUDY}
