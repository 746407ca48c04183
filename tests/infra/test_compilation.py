"""The cache of compiled programs, and what is compiled, counted."""

import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from rlvr import main
from rlvr.infra.compilation import (
  Compiled,
  CompileWatch,
  default_folder,
  processor_key,
  prune,
  use_cache,
)
from tests import runs

_NAMES = (
  "jax_compilation_cache_dir",
  "jax_enable_compilation_cache",
  "jax_persistent_cache_min_compile_time_secs",
)
_CPUINFO = "processor\t: 0\nmodel name\t: A\nflags\t\t: fma avx2 sse\n"


@pytest.fixture(autouse=True)
def same_settings(monkeypatch):
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  before = {name: jax.config.values[name] for name in _NAMES}
  yield before
  for name, value in before.items():
    jax.config.update(name, value)


def settings():
  return {name: jax.config.values[name] for name in _NAMES}


def test_the_folder_is_the_users_own(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", "/home/x")
  key = processor_key()
  home = f"/home/x/.cache/rlvr/jax/{key}"
  assert str(default_folder({"XDG_CACHE_HOME": "/c"})) == f"/c/rlvr/jax/{key}"
  assert str(default_folder({})) == home
  assert str(default_folder({"XDG_CACHE_HOME": "relative"})) == home


def test_processors_with_other_instructions_have_other_folders(tmp_path):
  file = tmp_path / "cpuinfo"

  def key(text):
    file.write_text(text)
    return processor_key(file)

  known = key(_CPUINFO)
  # Order and number of cores say nothing; the clock changes all the time.
  assert key(_CPUINFO.replace("fma avx2", "avx2 fma")) == known
  assert key(_CPUINFO * 2 + "cpu MHz : 2000.1\n") == known
  assert key(_CPUINFO.replace("avx2", "avx2 avx512f")) != known
  assert processor_key(tmp_path / "absent").startswith(known.split("-")[0])


def test_switches(tmp_path, monkeypatch, same_settings):
  folder = tmp_path / "cache"
  said = use_cache(str(folder))
  assert str(folder) in said and folder.stat().st_mode & 0o777 == 0o700
  assert settings()["jax_compilation_cache_dir"] == str(folder)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  assert str(tmp_path / "rlvr") in use_cache(None)
  # What the user has set for JAX stays as it is.
  jax.config.update("jax_compilation_cache_dir", "/given")
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/given")
  assert "/given (JAX_COMPILATION_CACHE_DIR)" in use_cache(None)
  assert settings()["jax_compilation_cache_dir"] == "/given"
  assert use_cache("") == "compile cache: off"
  assert not settings()["jax_enable_compilation_cache"]
  assert "JAX_ENABLE_COMPILATION_CACHE" in use_cache(str(folder))


def test_a_folder_that_cannot_be_used_ends_nothing(tmp_path):
  (tmp_path / "file").write_text("")
  said = use_cache(str(tmp_path / "file" / "cache"))
  assert said.startswith("warning: no compile cache in")
  assert "--compile_cache=FOLDER" in said
  assert not settings()["jax_enable_compilation_cache"]


def test_calling_main_changes_no_settings(tmp_path, same_settings, capsys):
  arguments = [*runs.argv("train", tmp_path / "r", "STEPS=3"), "--dry_run"]
  assert main.main(arguments) == 0
  assert settings() == same_settings
  assert "compile cache" not in capsys.readouterr().out
  # The flag does, whoever calls.
  assert main.main([*arguments, f"--compile_cache={tmp_path / 'c'}"]) == 0
  assert settings()["jax_compilation_cache_dir"] == str(tmp_path / "c")
  assert "compile cache: " in capsys.readouterr().out


def test_the_longest_unused_go_first(tmp_path):
  for age, name in enumerate(("new", "old", "older")):
    (tmp_path / f"{name}-cache").write_bytes(bytes(10))
    then = time.time() - 1000 * age
    os.utime(tmp_path / f"{name}-cache", (then, then))
  (tmp_path / "older-atime").write_bytes(b"")
  (tmp_path / "notes.txt").write_bytes(bytes(100))  # none of the cache's
  assert prune(tmp_path, max_bytes=30) == 0
  assert prune(tmp_path, max_bytes=25) == 1
  assert {p.name for p in tmp_path.iterdir()} == {
    *("new-cache", "old-cache", "notes.txt")
  }


_PROGRAM = """
import sys
import jax, jax.numpy as jnp
from rlvr.infra.compilation import CompileWatch, use_cache
use_cache(sys.argv[1])
watch = CompileWatch()
watch.start()
f = jax.jit(jax.grad(lambda x: jnp.sin(x @ x).sum() * jnp.tanh(x).sum()))
y = f(jax.random.normal(jax.random.key(0), (37, 37)))
print(watch.take().cached, bytes(memoryview(y)).hex()[:4000])
"""


def test_a_second_process_reads_what_the_first_wrote(tmp_path):
  def run(folder):
    found = subprocess.run(
      [sys.executable, "-W", "error", "-c", _PROGRAM, tmp_path / folder],
      env={
        **os.environ,
        "PYTHONPATH": str(runs.ROOT),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      },
      capture_output=True,
      text=True,
      check=True,
    )
    # XLA would complain on stderr of another machine's program.
    assert "machine" not in found.stderr.lower(), found.stderr
    cached, numbers = found.stdout.split()
    return int(cached), numbers

  cold, warm, other = run("a"), run("a"), run("b")
  assert cold[0] == 0 and warm[0] >= 1
  assert cold[1] == warm[1] == other[1], "the same numbers to the last bit"
  # The control: another folder has nothing to give.
  assert other[0] == 0


def test_compiled_programs_are_counted_once():
  watch = CompileWatch()
  watch.start()
  inner = jax.jit(lambda x: jnp.sin(x) * 2)
  f = jax.jit(lambda x: inner(x) @ inner(x))
  arrays = [jnp.ones((n, n)) for n in (5, 6)]
  watch.take()
  begin = time.perf_counter()
  f(arrays[0])
  wall = time.perf_counter() - begin
  first = watch.take()
  # `inner` is traced inside `f`: neither a program nor time of its own.
  assert len(first.names) == 1 and "lambda" in first.names[0]
  assert 0 < first.seconds <= wall
  f(arrays[0])
  assert watch.take() == Compiled(0.0, (), 0)
  f(arrays[1])
  second = watch.take()
  assert len(second.names) == 1
  assert watch.total().names[-2:] == first.names + second.names
  assert watch.total().seconds >= first.seconds + second.seconds
  watch.close()
  watch.close()
  jax.jit(lambda x: x + 3)(arrays[0])
  assert watch.take().names == ()


def test_what_was_compiled_in_words():
  found = Compiled(12.345, ("jit(f)", "jit(g)"), 1)
  assert found.text() == "2 programs in 12.3 s, 1 of them from the cache"
  assert Compiled(1.0, ("jit(f)",), 0).text(names=True) == (
    "1 program in 1.0 s (jit(f))"
  )
  assert found.metrics() == {"time/compile_s": 12.345, "time/compile_count": 2}
