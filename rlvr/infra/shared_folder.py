"""The run folder where several hosts work on one run.

Process 0 alone writes logs, samples and the report; checkpoints are written by
all, to one place that all must see.
"""

import hashlib
import os
import pathlib
import time
import uuid

import jax

from rlvr.data.sources import PromptSource
from rlvr.infra.hosts import current
from rlvr.infra.run_folder import RunFolder, open_run_folder

_LAG_S = 20.0  # until a file of another host is seen on a network file system


def open_for_hosts(
  path: str | os.PathLike,
  *,
  resume: bool,
  checkpoint_dir: str | None = None,
) -> RunFolder:
  """Returns the run's folder; with one process as `open_run_folder`.

  All hosts call this.

  Args:
    path: `run_dir`; where checkpoints lie elsewhere, only process 0's counts.
    resume: see `open_run_folder`.
    checkpoint_dir: see `open_run_folder`.

  Raises:
    ValueError: see `open_run_folder`; or the hosts see different folders.
    OSError: the folder cannot be written.
  """
  hosts = current()
  if hosts.main:
    folder = open_run_folder(path, resume=resume, checkpoint_dir=checkpoint_dir)
  else:
    root = pathlib.Path(os.path.abspath(os.path.expanduser(os.fspath(path))))
    folder = RunFolder(root, checkpoint_dir)
  if not hosts.several:
    return folder
  mark = None
  if checkpoint_dir is None:
    mark = folder.path / ".hosts"
  elif "://" not in checkpoint_dir:  # a bucket is the same one from everywhere
    mark = pathlib.Path(os.path.expanduser(checkpoint_dir)).absolute()
    mark = mark.parent / f".{mark.name}.hosts"
  word = uuid.uuid4().hex
  if mark is not None and hosts.main:
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(word, encoding="utf-8")
  word = hosts.share("run folder", word)
  if mark is not None and not _comes_to_hold(mark, word):
    name = "run_dir" if checkpoint_dir is None else "checkpoint_dir"
    given = path if checkpoint_dir is None else checkpoint_dir
    raise ValueError(
      f"{name}={os.fspath(given)!r} of host {hosts.index} isn't the folder that"
      " host 0 sees, and checkpoints are written by all hosts: give one on a"
      " file system that all of them mount, or a bucket as checkpoint_dir"
    )
  hosts.barrier("opening the run's folder")
  if mark is not None and hosts.main:
    mark.unlink(missing_ok=True)
  return folder


def check_same_run(config_text: str, *sources: PromptSource) -> None:
  """Checks that all hosts were given the same run; they'd wait for one another.

  Args:
    config_text: the configuration as given.
    *sources: examples of the run.

  Raises:
    ValueError: the first thing that differs from process 0's.
  """
  hosts = current()
  digest = hashlib.sha256(config_text.encode()).hexdigest()[:16]
  found = {
    "jax version": (jax.__version__, "install the same versions on all"),
    "configuration": (digest, "start all with the same command line"),
  }
  for i, source in enumerate(sources):
    fix = "give all of them the same data files"
    found[f"fingerprint of examples {i}"] = (source.fingerprint, fix)
  for name, (value, fix) in found.items():
    hosts.check_same(name, value, fix)


def _comes_to_hold(path: pathlib.Path, text: str) -> bool:
  """Returns whether the file holds the text, now or soon."""
  deadline = time.monotonic() + _LAG_S
  while True:
    try:
      if path.read_text(encoding="utf-8") == text:
        return True
    except OSError:
      pass  # not there yet
    if time.monotonic() > deadline:
      return False
    time.sleep(0.2)
