#!/usr/bin/env bash
# Install edgelm as a Jetson does, into an empty environment of PYTHON, and run the tests that need
# neither torch nor an export there. EDGELM_TEST_BUNDLE: what `python -m tests.tiny_bundle` wrote.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3.10}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install -q -c constraints.txt -e ".[cpu]" --config-settings editable_mode=strict
"$work/venv/bin/pip" install -q -c constraints.txt "setuptools>=77" pytest pytest-xdist
OMP_NUM_THREADS=1 "$work/venv/bin/python" -m pytest -q -n "${WORKERS:-2}" -p tests.without_torch \
  tests/core tests/devices tests/runtime
