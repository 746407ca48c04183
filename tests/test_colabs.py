"""The notebooks run from top to bottom and are committed without outputs."""

import json

import pytest

from tests import runs

NOTEBOOKS = sorted((runs.ROOT / "colabs").glob("*.ipynb"))


def cells(path):
  return json.loads(path.read_text(encoding="utf-8"))["cells"]


def test_there_are_notebooks():
  assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_has_no_outputs(path):
  for cell in cells(path):
    assert not cell.get("outputs"), f"{path.name}: clear the outputs"
    assert cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, capsys):
  names = {"__name__": "notebook"}
  for cell in cells(path):
    if cell["cell_type"] == "code":
      exec(compile("".join(cell["source"]), path.name, "exec"), names)
  if path.stem == "reward_chains":
    grpo, summed, least = names["pages"].values()
    assert grpo != summed != least
    reward = names["scores"].outcome["reward"]
    # Good in both beats excellent in one and bad in the other.
    assert reward[1] > reward[0] and reward[1] > reward[2]
    assert reward[3] != reward[3]
