"""The built wheel, alone with what the trainer needs: without Optuna, MLflow and all else that only studies use."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
OF_STUDIES = {"optuna", "mlflow", "matplotlib", "scipy", "sqlalchemy", "alembic"}


def own_requirements() -> list[str]:
    """What pyproject.toml lists for the trainer: up to the comment that begins the harness's."""
    text = (ROOT / "pyproject.toml").read_text()
    own = text[text.index("# skiprec, the trainer") : text.index("# study, the harness")]
    listed = re.findall(r'"([A-Za-z0-9_-]+)', own)
    assert set(listed) < {re.match(r"[A-Za-z0-9_-]+", d)[0] for d in tomllib.loads(text)["project"]["dependencies"]}
    return listed


def with_all_they_need(names: list[str]) -> dict[str, importlib.metadata.Distribution]:
    """These installed distributions and, over and over, those that they require on this machine."""
    found, left = {}, list(names)
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # for another system
            continue
        left += [re.match(r"[\w.-]+", r)[0] for r in found[name].requires or [] if "extra ==" not in r]
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, str]:
    """An environment in which Python finds the unpacked wheel, links to what the trainer needs, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # setuptools leaves things where it builds
    for package in ("skiprec", "study"):
        shutil.copytree(ROOT / package, source / package)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("skiprec-*.whl")
    site = folder / "site"
    subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, site], check=True)
    needed = with_all_they_need(own_requirements())
    assert not OF_STUDIES & needed.keys()
    for distribution in needed.values():
        for top in {Path(file).parts[0] for file in distribution.files if ".." not in Path(file).parts}:
            if not (site / top).exists() and top != "__pycache__":
                (site / top).symlink_to(distribution.locate_file(top))
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(site), "HOME": str(folder)}


def run(alone, folder, *arguments):
    """A command of the wheel: -S, so that no other package is found."""
    command = [sys.executable, "-S", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=alone, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_prepares_trains_evaluates_and_recommends_with_the_trainers_packages_alone(alone, tmp_path):
    """And what only studies need is really not there."""
    for name in sorted(OF_STUDIES):
        found = run(alone, tmp_path, "-c", f"import importlib.util; print(importlib.util.find_spec('{name}'))")
        assert found == "None\n"
    skiprec = ("-m", "skiprec")
    run(alone, tmp_path, *skiprec, "synthesize", "--out", "logs", "--sessions", 150, "--items", 200)
    run(alone, tmp_path, *skiprec, "prepare", "logs", "--out", "data")
    small = [f"--set={s}" for s in ("dim=8", "n_heads=2", "n_negatives=20", "max_epochs=1", "patience=0")]
    assert "chose epoch 1" in run(alone, tmp_path, *skiprec, "train", "data", "--out", "run", *small)
    assert "val/hr_at_10" in run(alone, tmp_path, *skiprec, "evaluate", "run")
    assert run(alone, tmp_path, *skiprec, "recommend", "run", "--session", "what").startswith(
        "unknown, and left out: what"
    )
    rows = "".join(
        f"u{u}\t2009-05-04T23:{t:02}:00Z\t\tan artist\t\tsong {u + t}\n" for u in range(9) for t in range(10)
    )
    (tmp_path / "plays.tsv").write_text(rows)
    made = run(alone, tmp_path, *skiprec, "prepare", "plays.tsv", "--columns", "lastfm_1k", "--out", "plays")
    assert made.startswith("9 sessions kept, 18 items, 90 plays")
