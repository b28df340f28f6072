"""The scripts for schedulers, checked by the strictest thing that runs without one."""

import os
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from mlflow import MlflowClient
from optuna.trial import TrialState
from test_faults import trials_of
from test_study import RECIPE, data, run  # noqa: F401  the fixture is used by name

from study.storage import open_study, places

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "scripts" / "cluster"
SRUN = """#!/usr/bin/env bash
# As Slurm's: starts a task for each of the array, and hands signals on.
echo "$*" >>"$SRUN_LOG"
exec "$@"
"""


def test_every_script_is_clean_to_shellcheck():
    """As strict as it comes."""
    scripts = [*ROOT.glob("scripts/*.sh"), *CLUSTER.glob("*.sh"), ROOT / ".ci" / "run"]
    done = subprocess.run([Path(sys.executable).parent / "shellcheck", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("version", ["1.31", "1.34"])
def test_the_job_is_one_to_kubernetes(version):
    """By its own schema, where what it does not know is an error; and there is time to give a cell back."""
    job = yaml.safe_load((CLUSTER / "kubernetes.yaml").read_text())
    kubernetes_validate.validate(job, version, strict=True)
    assert (job["spec"]["completionMode"], job["spec"]["completions"]) == ("Indexed", job["spec"]["parallelism"])
    assert job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 10
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job | {"spec": job["spec"] | {"paralellism": 8}}, version, strict=True)


@pytest.mark.slow
def test_an_array_of_real_workers_finishes_a_study_that_was_made_without_any(data, tmp_path):  # noqa: F811
    """Two tasks of a stand-in for srun; the last one closes the study's run."""
    where = places(tmp_path / "mlruns", None, None)
    (tmp_path / "tiny.toml").write_text(RECIPE)
    shared = tmp_path / "shared"
    at = ("--storage", where.storage, "--tracking-uri", where.tracking_uri, "--checkpoint-dir", shared)
    made = run(tmp_path, "study", "run", "tiny.toml", "--data", data, "--workers", 0, "--threads", 1, *at)
    assert made.returncode == 0, made.stderr
    name = made.stdout.split()[1].rstrip(":")
    assert f"next: study worker {name}" in made.stdout
    (tmp_path / "bin").mkdir()
    for program, text in {"srun": SRUN, "study": f'#!/bin/sh\nexec "{sys.executable}" -m study "$@"\n'}.items():
        (tmp_path / "bin" / program).write_text(text)
        (tmp_path / "bin" / program).chmod(0o755)
    env = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SRUN_LOG": str(tmp_path / "srun.log"),
        "SKIPREC_STORAGE": where.storage,
        "SKIPREC_TRACKING_URI": where.tracking_uri,
        "SKIPREC_CHECKPOINT_DIR": str(shared),
    }
    tasks = [subprocess.Popen(["bash", CLUSTER / "slurm.sh", name], cwd=tmp_path, env=env) for _ in range(2)]
    assert [task.wait(timeout=600) for task in tasks] == [0, 0]
    assert (tmp_path / "srun.log").read_text().count(f"study worker {name} --storage {where.storage}") == 2
    trials = trials_of(where)
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 4
    client = MlflowClient(tracking_uri=where.tracking_uri)
    assert client.get_run(open_study(where, name).user_attrs["parent_run"]).info.status == "FINISHED"
