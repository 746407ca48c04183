"""Chips by their published figures, topologies by name."""

import importlib.util

import pytest

from rlvr.infra import chips


def test_names_of_topologies():
  assert chips.chip_of("v5e:4x4").name == "v5e"
  assert chips.chip_of("v5p:2x2x4").name == "v5p"
  for wrong in ("v5e", "v5e:", "v5e:4xx4", "v5e:0x4", "h100:8", "v5e:4,4"):
    with pytest.raises(ValueError, match="CHIP:SIZE"):
      chips.chip_of(wrong)


def test_sizes_that_the_compiler_takes_amiss_are_refused():
  """It would compile the first three as something, and abort at the others."""
  for wrong in ("v5e:2x2x2", "v6e:4", "v5p:4x8"):
    with pytest.raises(ValueError, match="dimensions"):
      chips.chip_of(wrong)
  for wrong in ("v5e:16x32", "v6e:2x32", "v5p:16x20x28", "v4:16x16x32"):
    with pytest.raises(ValueError, match=r"largest slice is .*cloud\.google"):
      chips.chip_of(wrong)
  for right in ("v5e:16x16", "v6e:2x4", "v5p:16x16x24", "v4:8x16x32"):
    assert chips.chip_of(right).name == right.partition(":")[0]


@pytest.mark.parametrize(
  ("name", "megahertz"),
  # 197e12 / (4 · 2 · 128²) = 1503 MHz, and so on: a chip whose clock came out
  # as 3 GHz or 400 MHz would have a wrong peak or number of matrix units.
  [("v4", 1049), ("v5e", 1503), ("v5p", 1751), ("v6e", 1751)],
)
def test_clocks_from_peaks(name, megahertz):
  assert chips.CHIPS[name].clock_hz / 1e6 == pytest.approx(megahertz, abs=1)


def test_usable_memory_is_near_the_published():
  for chip in chips.CHIPS.values():
    assert 0.95 < chip.usable_bytes / chip.hbm_bytes < 1.01, chip.name
    assert chip.source.startswith("https://")


def test_without_the_compiler_the_error_says_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ModuleNotFoundError, match=r"requirements-tpu\.lock"):
    chips.topology_devices("v5e:2x2")
