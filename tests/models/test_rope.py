"""Stretched wavelengths, by loops written from the papers' formulas."""

import math

import numpy as np
import pytest

from rlvr.models import RopeScaling
from rlvr.models.rope import angles, frequencies
from tests.compare import must_fail

HEAD, THETA = 16, 10_000.0
close = np.testing.assert_allclose


def plain():
  return [THETA ** (-2 * i / HEAD) for i in range(HEAD // 2)]


def test_linear_divides_every_frequency():
  scaling = RopeScaling(kind="linear", factor=4.0)
  found, magnitude = frequencies(HEAD, THETA, scaling)
  close(found, [f / 4 for f in plain()], rtol=1e-6)
  assert magnitude == 1.0


def test_llama3_keeps_short_waves_and_stretches_long_ones():
  scaling = RopeScaling(kind="llama3", factor=8.0, original_max_positions=512)
  found, magnitude = frequencies(HEAD, THETA, scaling)
  expected, seen = [], set()
  for f in plain():
    wavelength = 2 * math.pi / f
    if wavelength < 512 / 4:
      expected.append(f)
      seen.add("kept")
    elif wavelength > 512 / 1:
      expected.append(f / 8)
      seen.add("stretched")
    else:
      smooth = (512 / wavelength - 1) / (4 - 1)
      expected.append((1 - smooth) * f / 8 + smooth * f)
      seen.add("between")
  assert seen == {"kept", "between", "stretched"}
  close(found, expected, rtol=1e-6)
  assert magnitude == 1.0
  must_fail(close, found, plain(), rtol=1e-6)


def test_yarn_ramps_between_dimensions():
  scaling = RopeScaling(kind="yarn", factor=4.0, original_max_positions=512)
  found, magnitude = frequencies(HEAD, THETA, scaling)
  # 16 ln(512 / 2πβ) / 2 ln 10⁴: 0.81 for β = 32, so 0; 3.82 for β = 1, so 4.
  mixed = [min(i / 4, 1.0) for i in range(HEAD // 2)]
  expected = [
    (1 - m) * f + m * f / 4 for m, f in zip(mixed, plain(), strict=True)
  ]
  close(found, expected, rtol=1e-6)
  assert magnitude == pytest.approx(0.1 * math.log(4) + 1)
  _, given = frequencies(
    HEAD,
    THETA,
    RopeScaling(
      kind="yarn",
      factor=4.0,
      original_max_positions=512,
      attention_factor=1.5,
    ),
  )
  assert given == 1.5


def test_the_magnitude_multiplies_queries_and_keys():
  at, f = np.array([[0, 3]]), np.array([0.5, 0.1], np.float32)
  cos, sin = angles(at, f, 2.0)
  assert cos.shape == sin.shape == (1, 2, 1, 2)
  close(cos[0, :, 0], 2 * np.cos(at[0, :, None] * f), rtol=1e-6)
  close(sin[0, :, 0], 2 * np.sin(at[0, :, None] * f), rtol=1e-6)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"kind": "ntk", "factor": 2.0}, r"kind='ntk'.*'yarn'"),
    ({"kind": "linear", "factor": 0.5}, r"factor=0.5 must be at least 1"),
    ({"kind": "yarn", "factor": 2.0}, r"original_max_positions=None"),
    (
      {
        "kind": "llama3",
        "factor": 2.0,
        "original_max_positions": 8,
        "high_freq_factor": 1.0,
      },
      r"high_freq_factor=1.0 must be above",
    ),
  ],
)
def test_errors_name_the_field(fields, message):
  with pytest.raises(ValueError, match=message):
    RopeScaling(**fields)
