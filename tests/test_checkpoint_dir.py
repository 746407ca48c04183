"""Checkpoints in another place than the run: what a lost host leaves."""

import json
import shutil

from rlvr import main
from rlvr.infra.metrics import read_metrics
from tests import runs


def test_a_run_whose_folder_is_lost_goes_on_from_its_checkpoints(
  tmp_path, capsys
):
  bucket = tmp_path / "bucket"

  def start(steps, *extra):
    bindings = (
      f"STEPS={steps}",
      "EVALUATE_EVERY=2",
      f"train.train.checkpoint_dir='{bucket}'",
    )
    return main.main([*runs.argv("train", tmp_path / "run", *bindings), *extra])

  assert start(2) == 0
  assert not (tmp_path / "run/checkpoints").exists()
  assert (bucket / "2").is_dir()

  shutil.rmtree(tmp_path / "run")
  assert start(4) == 1
  assert "holds another run: give --resume" in capsys.readouterr().err
  assert start(4, "--resume") == 0
  steps = [row["step"] for row in read_metrics(tmp_path / "run/metrics.jsonl")]
  assert steps == [3, 4]
  about = json.loads((tmp_path / "run/about.json").read_text())
  assert about["status"] == "finished"
