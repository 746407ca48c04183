"""Sizes that don't fit together are refused, with the field's name."""

import pytest

from tests import tiny


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"vocab_size": 0}, r"vocab_size=0 must be at least 1"),
    ({"num_layers": 0}, r"num_layers=0 must be at least 1"),
    ({"mlp_dim": -3}, r"mlp_dim=-3 must be at least 1"),
    ({"num_heads": 4, "num_kv_heads": 3}, r"num_heads=4 .* num_kv_heads=3"),
    ({"head_dim": 5}, r"head_dim=5 is odd"),
    ({"compute_dtype": "float16"}, r"compute_dtype='float16'.*'bfloat16'"),
  ],
)
def test_errors_name_the_field(changes, message):
  with pytest.raises(ValueError, match=message):
    tiny.config(**changes)


def test_equal_configs_are_one_key_for_jit():
  assert hash(tiny.config()) == hash(tiny.CONFIG)
  assert tiny.config() == tiny.CONFIG
  assert tiny.config(qk_norm=True) != tiny.CONFIG
