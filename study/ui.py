"""The MLflow UI as a child process, with settings that start fast, and the pages that show a study."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from skiprec.errors import StudyError
from study.storage import Places, check_server

START_SECONDS = 120
"""How long the server may take to answer."""


def serve(where: Places, port: int) -> None:
    """Serve until interrupted.

    Raises:
        StudyError: If there is no database, or it does not let us in, or the port is taken, or the server ends by
            itself, or never answers.
        KeyboardInterrupt: After Ctrl-C, when the server has ended.
    """
    database = where.tracking_uri.removeprefix("sqlite:///")
    if where.tracking_uri.startswith("sqlite:///") and not Path(database).exists():
        raise StudyError(f"{database}: there is no such database, so nothing to show; `study run` makes one")
    check_server(where.tracking_uri)
    with socket.socket() as probe:
        # The server itself would start, fail in a child process, and never answer.
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise StudyError(f"127.0.0.1:{port} is taken by another program; give another --port")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", where.tracking_uri, "--artifacts-destination", where.artifacts.as_uri()]
    # Without its job runners the server is 2 processes instead of 15, and ready in a third of the time.
    quick = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends this process ends the server too
    # Its own chatter goes with the errors: what this command prints is for people to read or programs to parse.
    server = subprocess.Popen(command, env=os.environ | quick, stdout=sys.stderr)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(server, address, where)
        print(f"the MLflow UI is at {address}; Ctrl-C stops it")
        for name, trials, answer in study_pages(address):
            print(f"  study {name}: {trials}\n    its answer: {answer}")
        if server.wait():
            raise StudyError(f"the MLflow server at {address} ended with exit code {server.returncode} (see above)")
    finally:
        server.terminate()
        server.wait()


def wait_until_ready(server: subprocess.Popen, address: str, where: Places) -> None:
    """Wait for the server's /health to answer.

    Raises:
        StudyError: If the server ends first, or START_SECONDS pass.
    """
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if server.poll() is not None:
            raise StudyError(f"the MLflow server at {address} on {where.tracking_uri} did not start (see above)")
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=1):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.2)
    raise StudyError(f"the MLflow server at {address} did not answer within {START_SECONDS} s")


def study_pages(address: str) -> list[tuple[str, str, str]]:
    """Each study's name, the page that lists its trials, the best first, and that of its own run.

    The list leaves that run out (see `tracking.save_view`); its description is the answer, once there is a report.
    """
    from mlflow import MlflowClient

    from study.tracking import VIEW, study_run

    client, pages = MlflowClient(tracking_uri=address), []
    for experiment in client.search_experiments():
        if run_id := study_run(client, experiment.experiment_id, experiment.name):
            runs = f"{address}/#/experiments/{experiment.experiment_id}/runs"
            pages.append((experiment.name, f"{runs}?viewStateShareKey={VIEW}", f"{runs}/{run_id}"))
    return pages
