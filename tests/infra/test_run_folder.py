"""The folder of a run: whose it is, and errors before anything is written."""

import os
import pathlib
import subprocess
import sys

import pytest

from rlvr.infra import run_folder
from rlvr.infra.run_folder import RunFolder, open_run_folder, write_atomically


def test_a_new_folder(tmp_path):
  run = open_run_folder(tmp_path / "a" / "b", resume=False)
  assert run.path.is_dir() and not any(run.path.iterdir())
  assert run.metrics == run.path / "metrics.jsonl"
  assert run.checkpoints == str(run.path / "checkpoints")
  names = {
    p.name
    for p in (
      run.metrics,
      run.samples,
      run.report,
      run.config_given,
      run.config_operative,
      run.tensorboard,
      run.about,
      pathlib.Path(run.checkpoints),
    )
  }
  assert len(names) == 8


@pytest.mark.parametrize("mark", ["metrics.jsonl", "config_given.gin"])
def test_another_run_is_not_written_over(tmp_path, mark):
  (tmp_path / mark).write_text("x\n")
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(ValueError, match=r"run_dir=.*--resume.*another run_dir"):
    open_run_folder(tmp_path, resume=False)
  assert sorted(os.listdir(tmp_path)) == sorted([mark, "notes.txt"])
  assert open_run_folder(tmp_path, resume=True).path == tmp_path


def test_checkpoints_alone_are_a_run_too(tmp_path):
  (tmp_path / "checkpoints" / "10").mkdir(parents=True)
  with pytest.raises(ValueError, match="checkpoints"):
    open_run_folder(tmp_path, resume=False)


def test_other_files_and_empty_marks_are_no_run(tmp_path, capsys):
  (tmp_path / "notes.txt").write_text("mine")
  (tmp_path / "metrics.jsonl").write_text("")
  (tmp_path / "checkpoints").mkdir()
  open_run_folder(tmp_path, resume=False)
  assert capsys.readouterr().out == ""


def test_nothing_to_resume_starts_fresh_and_says_so(tmp_path, capsys):
  open_run_folder(tmp_path / "new", resume=True)
  assert "no run to resume" in capsys.readouterr().out


def test_a_file_in_the_way(tmp_path):
  (tmp_path / "file").write_text("x")
  with pytest.raises(OSError, match=r"run_dir=.*is a file"):
    open_run_folder(tmp_path / "file" / "run", resume=False)


def test_an_unwritable_folder(tmp_path, monkeypatch):
  # root may write everywhere, so the answer of the system is stood in for.
  monkeypatch.setattr(run_folder.os, "access", lambda *_: False)
  with pytest.raises(PermissionError, match=r"run_dir=.*cannot be written"):
    open_run_folder(tmp_path / "deep" / "run", resume=False)
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["", "gs://bucket/run"])
def test_what_is_no_folder(path):
  with pytest.raises(ValueError, match="run_dir"):
    open_run_folder(path, resume=False)


def test_checkpoints_may_lie_on_a_bucket(tmp_path):
  run = open_run_folder(
    tmp_path, resume=False, checkpoint_dir="gs://bucket/run"
  )
  assert run.checkpoints == "gs://bucket/run"


def test_about_is_merged(tmp_path):
  run = RunFolder(tmp_path)
  assert run.read_about() == {}
  run.write_about(status="running", seeds=[0])
  run.write_about(status="finished")
  assert run.read_about() == {"status": "finished", "seeds": [0]}


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "a.txt"
  write_atomically(path, "old")
  monkeypatch.setattr(
    pathlib.Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("full"))
  )
  with pytest.raises(OSError, match="full"):
    write_atomically(path, "new")
  assert path.read_text() == "old"
  assert os.listdir(tmp_path) == ["a.txt"]


def test_importing_the_package_loads_nothing_heavy():
  code = (
    "import sys, rlvr.infra; heavy = {'tensorflow', 'orbax', 'matplotlib',"
    " 'rich', 'clu'} & set(sys.modules); assert not heavy, heavy;"
    " from rlvr.infra import RunFolder, MetricLog, write_report, Checkpoints;"
    " assert 'tensorflow' not in sys.modules; dir(rlvr.infra)"
  )
  done = subprocess.run(
    [sys.executable, "-W", "error", "-c", code],
    env={
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
    },
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
