#!/usr/bin/env bash
# Sets up (scripts/setup.sh) and passes the tests: format, lint, types, pytest.
# Arguments go to pytest: scripts/test.sh -k credit; scripts/test.sh -m slow.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$("$root/scripts/setup.sh")
cd "$root"
export JAX_PLATFORMS=cpu
# The TPU compiler, which the tests of compiling ahead of time need and running
# doesn't: 205 MB to fetch. Without it those tests skip.
"$python" -c 'import libtpu' 2>/dev/null ||
  "$python" -m pip --disable-pip-version-check -q install --no-deps \
    --requirement=requirements-tpu.lock >&2 ||
  echo "(no libtpu: the tests of compiling for TPUs skip)" >&2
"$python" -m ruff format --check .
"$python" -m ruff check .
"$python" -m mypy
# Two processes: compilation, most of the time, uses one core each.
"$python" -m pytest -n 2 --dist loadfile "$@"
