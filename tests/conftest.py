"""Settings of every test: CPU, eight simulated devices, no rank promotion."""

import os

# Before the first import of jax: XLA reads its flags once.
os.environ["JAX_PLATFORMS"] = "cpu"
_DEVICES = "--xla_force_host_platform_device_count"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8".strip()
  )

import jax  # noqa: E402
import pytest  # noqa: E402

# [B] + [B, T] is a mistake far more often than a wish.
jax.config.update("jax_numpy_rank_promotion", "raise")

# The shared assertions explain themselves as those in test files do.
pytest.register_assert_rewrite("tests.suite", "tests.compare")
