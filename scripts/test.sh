#!/usr/bin/env bash
# Sets up (scripts/setup.sh) and passes the tests: format, lint, types, pytest.
# Arguments go to pytest: scripts/test.sh -k credit; scripts/test.sh -m slow.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$("$root/scripts/setup.sh")
cd "$root"
export JAX_PLATFORMS=cpu
"$python" -m ruff format --check .
"$python" -m ruff check .
"$python" -m mypy
# Two processes: compilation, most of the time, uses one core each.
"$python" -m pytest -n 2 --dist loadfile "$@"
