#!/usr/bin/env bash
# Makes the environment that the other scripts use, once: .venv in the
# repository (RLVR_VENV=DIR for another place), with the locked versions.
# Needs Python 3.11 or later with venv, and a package index. Prints its Python.
# RLVR_EXTRA=tpu on a TPU host: libtpu as well (requirements-tpu.lock).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${RLVR_VENV:-$root/.venv}

python=${PYTHON:-}
if [ -z "$python" ]; then
  for candidate in python3 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      python=$candidate
      break
    fi
  done
fi
if [ -z "$python" ]; then
  echo "rlvr needs Python 3.11 or later: install it, or set PYTHON=/path/to/python3" >&2
  exit 1
fi

locks=("$root/requirements.lock")
case ${RLVR_EXTRA:-} in
  "") ;;
  tpu) locks+=("$root/requirements-tpu.lock") ;;
  *) echo "RLVR_EXTRA=$RLVR_EXTRA: give tpu or nothing" >&2; exit 2 ;;
esac

stamp=$(cat "${locks[@]}" "$root/setup.py" "$root/scripts/setup.sh" | cksum)
if [ ! -x "$venv/bin/python" ] || [ "$(cat "$venv/rlvr-stamp" 2>/dev/null)" != "$stamp" ]; then
  echo "Making the environment in $venv (about 2 minutes, 2.5 GB) ..." >&2
  if ! "$python" -m venv "$venv" >&2; then
    echo "python -m venv failed: on Debian and Ubuntu, apt-get install python3-venv" >&2
    exit 1
  fi
  pip=("$venv/bin/python" -m pip --disable-pip-version-check -q)
  # The lock is complete, so that nothing is resolved and nothing else comes in.
  "${pip[@]}" install --no-deps "${locks[@]/#/--requirement=}" 2> >(grep -v 'is ignored: it is neither' >&2 || true)
  # No wheels exist for it; without a C compiler, zebra puzzles are missing.
  "${pip[@]}" install --no-deps pycosat==0.6.6 >/dev/null 2>&1 ||
    echo "(no C compiler: reasoning-gym's zebra_puzzles are left out)" >&2
  "${pip[@]}" install --no-deps -e "$root" 2> >(grep -v 'is ignored: it is neither' >&2 || true)
  echo "$stamp" >"$venv/rlvr-stamp"
fi
echo "$venv/bin/python"
