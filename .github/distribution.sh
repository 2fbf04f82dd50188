#!/usr/bin/env bash
# Build the wheel and the sdist into dist/, check their metadata, and use each in an empty
# environment. Needs the package index, but no repository on the path: it ends in a folder elsewhere.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

rm -rf dist
"$python" -m venv "$work/tools"
"$work/tools/bin/pip" install -q build twine
"$work/tools/bin/python" -m build --outdir dist .
"$work/tools/bin/twine" check --strict dist/*

for file in "$PWD"/dist/*.whl "$PWD"/dist/*.tar.gz; do
  echo "== $(basename "$file") in an empty environment"
  rm -rf "$work/empty"
  "$python" -m venv "$work/empty"
  "$work/empty/bin/pip" install -q -c constraints.txt "edgelm[cpu] @ file://$file"
  (
    cd "$work" # so that the repository's own folders are not imported
    empty/bin/python -c "import edgelm; print('edgelm', edgelm.__version__); edgelm.load"
    empty/bin/edge-run --help > /dev/null
    empty/bin/edge-devices list > /dev/null
    empty/bin/edge-devices plan --help > /dev/null
  )
done
echo "dist/ is ready to publish"
