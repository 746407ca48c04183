"""Prints how far families are from `transformers`, as docs/real_models.md has it.

  JAX_PLATFORMS=cpu python -m tests.models.print_families

Against what tests/reference/make_families_transformers.py wrote down.
"""

import numpy as np

from tests.models import test_families as families


def row(name: str) -> str:
  """Returns a case's line of the table."""
  arrays, about = families.case(name)
  config = families.config_of(name)
  sides = ("left", "right")
  worst = max(families.difference(name, config, side) for side in sides)
  size = max(np.abs(arrays[f"{side}/logits"]).max() for side in sides)
  equal = families.continued(name) == arrays["continuation"]
  cells = (
    f"`{name}`",
    f"`{about['config']['model_type']}`",
    f"{size:.1f}",
    f"{worst:.1e}",
    f"{equal.sum()} of {equal.size}",
    f"{about['least_margin']:.3f}",
  )
  return f"| {' | '.join(cells)} |"


def main() -> None:
  """Prints the table."""
  print(
    "| case | `model_type` | greatest logit | max error of a logit"
    " | equal tokens | least margin |"
  )
  print("|---|---|---|---|---|---|")
  for name in families.CASES:
    print(row(name), flush=True)


if __name__ == "__main__":
  main()
