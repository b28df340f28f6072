# shellcheck shell=bash
# Sourced by test.sh and demo.sh: makes .venv in the repository and installs into it, unless that was done already.
# Usage: . scripts/environment.sh [EXTRA]     EXTRA: an optional group of pyproject.toml, such as "test".

extra=${1:-}
python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "$python is $("$python" --version 2>&1), expected Python 3.11 or newer; name one: PYTHON=/path/to/python bash $0" >&2
    exit 1
fi
# What was installed is known by the files that say what to install.
digest=$(cat pyproject.toml scripts/constraints.txt | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest()[:16])')
stamp=.venv/installed-${extra:-base}-$digest
if [ ! -e "$stamp" ] && { [ -n "$extra" ] || ! ls .venv/installed-*-"$digest" >/dev/null 2>&1; }; then
    echo "installing into .venv (once)"
    "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        -c scripts/constraints.txt -e ".${extra:+[$extra]}"
    touch "$stamp"
fi
export PATH="$PWD/.venv/bin:$PATH"
