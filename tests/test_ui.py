"""`study ui`: the real server, on loopback, until it is told to stop."""

import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from conftest import hear_ctrl_c

from study.storage import places
from study.tracking import open_experiment, open_tracker

pytestmark = pytest.mark.slow


def free_port():
    """A port that nobody has just now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_the_ui_starts_names_the_studies_and_stops_with_ctrl_c(tmp_path):
    """It answers on loopback, links each study's trials and its own run, and ends with exit code 0."""
    where = places(tmp_path / "mlruns", None, None)
    where.mlruns.mkdir()
    _, run_id = open_experiment(open_tracker(where), where, "some-study", "some-study")
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "study", "ui", "--port", str(port)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=hear_ctrl_c,
    )
    try:
        assert process.stdout.readline() == f"the MLflow UI is at http://127.0.0.1:{port}; Ctrl-C stops it\n"
        line = process.stdout.readline()
        assert line == f"  study some-study: http://127.0.0.1:{port}/#/experiments/1/runs?viewStateShareKey=skiprec\n"
        answer = process.stdout.readline()
        assert answer == f"    its answer: http://127.0.0.1:{port}/#/experiments/1/runs/{run_id}\n"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as page:
            assert page.status == 200
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_taken_port_is_one_line_that_says_so(tmp_path):
    """Exit code 1, and what to do."""
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "study", "ui", "--port", str(port)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"StudyError: 127.0.0.1:{port} is taken")


def test_the_ui_of_a_folder_without_studies_is_refused_and_makes_none(tmp_path):
    """One line that says what makes one."""
    done = subprocess.run(
        [sys.executable, "-m", "study", "ui"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert done.stderr.startswith("StudyError: ")
    assert list(tmp_path.iterdir()) == []
