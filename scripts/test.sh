#!/usr/bin/env bash
# Sets up (scripts/setup.sh) and passes the tests: format, lint, types, pytest.
# Arguments go to pytest: scripts/test.sh -k credit; scripts/test.sh -m slow.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$("$root/scripts/setup.sh")
cd "$root"
export JAX_PLATFORMS=cpu
# The TPU compiler, which the tests of compiling ahead of time need: 205 MB to
# fetch. In a folder of its own, as where it is installed JAX looks for TPUs at
# every start; without it those tests skip.
compiler=$(dirname "$(dirname "$python")")/tpu-compiler
if ! "$python" -c 'import libtpu' 2>/dev/null; then
  [ -d "$compiler/libtpu" ] ||
    "$python" -m pip --disable-pip-version-check -q install --no-deps \
      --target="$compiler" --requirement=requirements-tpu.lock >&2 ||
    echo "(no libtpu: the tests of compiling for TPUs skip)" >&2
  export PYTHONPATH=$compiler${PYTHONPATH:+:$PYTHONPATH}
fi
"$python" -m ruff format --check .
"$python" -m ruff check .
"$python" -m mypy
# Two processes: compilation, most of the time, uses one core each.
"$python" -m pytest -n 2 --dist loadfile "$@"
