"""What a full disk or a careless hand does to a checkpoint."""

import pathlib
import shutil


def damage(checkpoint: pathlib.Path, kind: str) -> None:
  """Damages the checkpoint in a folder.

  Args:
    checkpoint: its own folder, by its step.
    kind: "no metadata", "half a file" (the largest of the arrays') or "no host
      data".
  """
  if kind == "no metadata":
    (checkpoint / "state" / "_METADATA").unlink()
  elif kind == "half a file":
    files = (checkpoint / "state").rglob("d/*")
    largest = max(files, key=lambda file: file.stat().st_size)
    data = largest.read_bytes()
    largest.write_bytes(data[: len(data) // 2])
  elif kind == "no host data":
    shutil.rmtree(checkpoint / "host")
  else:
    raise ValueError(f"damage: {kind!r} is unknown")
