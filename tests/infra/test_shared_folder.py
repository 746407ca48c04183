"""The run's folder over several hosts, each played in turn."""

import threading

import pytest

from rlvr.infra import shared_folder
from rlvr.infra.hosts import Hosts


class Played(Hosts):
  """A host of two whose messages are a shared dictionary."""

  def __init__(self, index, said):
    super().__init__(index=index)
    self.count, self._said = 2, said

  def share(self, name, value=""):
    return self._said.setdefault(name, value)

  def barrier(self, place):
    self._said.setdefault("barriers", []).append(place)


def opened(monkeypatch, hosts, *args, **settings):
  monkeypatch.setattr(shared_folder, "current", lambda: hosts)
  return shared_folder.open_for_hosts(*args, resume=False, **settings)


@pytest.fixture
def impatient(monkeypatch):
  monkeypatch.setattr(shared_folder, "_LAG_S", 0.0)


def test_both_hosts_have_one_folder(monkeypatch, tmp_path):
  said = {}
  # The mark goes once both have passed: the second finds it before.
  first, second = Played(0, said), Played(1, said)
  wait = threading.Event()

  def barrier(place):
    assert opened(monkeypatch, second, tmp_path / "run").path == (
      tmp_path / "run"
    )
    wait.set()

  first.barrier = barrier
  folder = opened(monkeypatch, first, tmp_path / "run")
  assert wait.is_set() and folder.path == tmp_path / "run"
  assert list(folder.path.iterdir()) == []


@pytest.mark.parametrize("name", ["run_dir", "checkpoint_dir"])
def test_a_folder_of_its_own_is_told(name, monkeypatch, tmp_path, impatient):
  said = {}

  def folders(host):
    if name == "run_dir":
      return {"path": tmp_path / host}
    return {
      "path": tmp_path / "run",
      "checkpoint_dir": str(tmp_path / host / "checkpoints"),
    }

  opened(monkeypatch, Played(0, said), **folders("a"))
  with pytest.raises(ValueError, match=f"{name}=.*of host 1 isn't the folder"):
    opened(monkeypatch, Played(1, said), **folders("b"))


def test_a_bucket_is_in_common(monkeypatch, tmp_path, impatient):
  said = {}
  for index in (0, 1):
    folder = opened(
      monkeypatch,
      Played(index, said),
      tmp_path / str(index),
      checkpoint_dir="gs://bucket/checkpoints",
    )
    assert folder.checkpoints == "gs://bucket/checkpoints"
