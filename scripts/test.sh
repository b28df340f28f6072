#!/usr/bin/env bash
# Makes the environment where there is none, and runs the checks and the tests.
# Usage: bash scripts/test.sh [arguments of pytest, such as -m "not slow"]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh test
ruff check .
ruff format --check .
# A process a core; the tests of one file stay together, as they share what they start, and files keep their order.
python -m pytest -n auto --dist loadfile --no-loadscope-reorder --durations 20 "$@"
