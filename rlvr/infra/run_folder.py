"""The folder of a run: what is where, and whose it is."""

import dataclasses
import json
import os
import pathlib
import tempfile
from typing import Any

# A folder that holds one of these belongs to a run.
_MARKS = ("metrics.jsonl", "samples.jsonl", "checkpoints", "config_given.gin")


@dataclasses.dataclass(frozen=True)
class RunFolder:
  """Where a run keeps what; making one touches no file."""

  path: pathlib.Path
  checkpoint_dir: str | None = None  # elsewhere, as on a bucket

  @property
  def metrics(self) -> pathlib.Path:
    """A JSON object per line and step: `rlvr.infra.metrics`."""
    return self.path / "metrics.jsonl"

  @property
  def samples(self) -> pathlib.Path:
    """Sampled responses with their rewards, a JSON object per line."""
    return self.path / "samples.jsonl"

  @property
  def checkpoints(self) -> str:
    """Folder or address (gs://...) of the checkpoints."""
    return self.checkpoint_dir or str(self.path / "checkpoints")

  @property
  def report(self) -> pathlib.Path:
    return self.path / "report.html"

  @property
  def config_given(self) -> pathlib.Path:
    """The configuration as it was given: files and bindings."""
    return self.path / "config_given.gin"

  @property
  def config_operative(self) -> pathlib.Path:
    """The parameters that the run really used."""
    return self.path / "config_operative.gin"

  @property
  def credit(self) -> pathlib.Path:
    """A response with its tokens coloured by credit, part of the report."""
    return self.path / "credit.html"

  @property
  def tensorboard(self) -> pathlib.Path:
    return self.path / "tensorboard"

  @property
  def profile(self) -> pathlib.Path:
    """Traces of some steps and what they say, where that was asked for."""
    return self.path / "profile"

  @property
  def about(self) -> pathlib.Path:
    """What the report's head says: `write_about`."""
    return self.path / "about.json"

  def write_about(self, **fields: Any) -> None:
    """Merges fields into `about.json`, in one rename.

    The report knows `title`, `status` ("running", "finished", "failed: why"),
    `total_steps`, `seeds`, `device` and `chain` (the text of
    `rlvr.rewards.algebra.describe`); others are shown as they are.
    """
    write_atomically(
      self.about, json.dumps({**self.read_about(), **fields}, indent=2) + "\n"
    )

  def read_about(self) -> dict[str, Any]:
    """Returns the fields of `about.json`; none where there is no file."""
    try:
      return json.loads(self.about.read_text(encoding="utf-8"))
    except FileNotFoundError:
      return {}


def open_run_folder(
  path: str | os.PathLike,
  *,
  resume: bool,
  checkpoint_dir: str | None = None,
) -> RunFolder:
  """Returns the folder of a new or a resumed run, made where it was missing.

  With several processes, call this on process 0 and make a plain `RunFolder`
  on the others: the check would race with what process 0 writes next.

  Args:
    path: `run_dir`, on a mounted file system.
    resume: go on with the run in the folder. Where there is none the run starts
      fresh, and a line says so, so that one command serves a preemptible
      machine from its first start on.
    checkpoint_dir: where checkpoints go instead of `run_dir/checkpoints`; may
      be a bucket (gs://...), which the hosts of a slice need in common.

  Raises:
    ValueError: nothing was given, the folder holds a run and `resume` is false,
      or `run_dir` is a bucket.
    OSError: the folder cannot be written.
  """
  text = os.fspath(path)
  if not text:
    raise ValueError("run_dir is empty: give the folder that keeps the run")
  if "://" in text:
    raise ValueError(
      f"run_dir={text!r} is no mounted folder, and metrics are appended line by"
      " line: give a mounted run_dir, and the bucket as checkpoint_dir"
    )
  root = pathlib.Path(os.path.abspath(os.path.expanduser(text)))
  _check_writable(root, text)
  found = [name for name in _MARKS if _holds(root / name)]
  if found and not resume:
    raise ValueError(
      f"run_dir={text!r} holds another run ({', '.join(found)}): give --resume"
      " to go on with it, or another run_dir"
    )
  if resume and not found:
    print(f"run_dir {text}: no run to resume here; starting a fresh one")
  root.mkdir(parents=True, exist_ok=True)
  return RunFolder(root, checkpoint_dir)


def write_atomically(path: pathlib.Path, text: str) -> None:
  """Writes a text file so that a reader sees the old one or the new one."""
  handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  temporary = pathlib.Path(name)
  try:
    with os.fdopen(handle, "w", encoding="utf-8") as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    temporary.chmod(0o644)  # mkstemp's 0600 hides the file from colleagues
    temporary.replace(path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def _holds(path: pathlib.Path) -> bool:
  """Whether the path is a file with content or a folder with an entry."""
  if path.is_dir():
    return any(path.iterdir())
  return path.is_file() and path.stat().st_size > 0


def _check_writable(root: pathlib.Path, given: str) -> None:
  """Raises where `root` could not be made or written; writes nothing."""
  here = root
  while not os.path.lexists(here):
    here = here.parent
  if not here.is_dir():
    raise NotADirectoryError(
      f"run_dir={given!r}: {here} is a file, not a folder; give another run_dir"
    )
  if not os.access(here, os.W_OK | os.X_OK):
    raise PermissionError(
      f"run_dir={given!r}: {here} cannot be written; give another run_dir or"
      " change its permissions"
    )
