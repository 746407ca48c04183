"""docs/performance.md: made from figures, which commands add one by one."""

import json

import pytest

from rlvr.infra.performance_page import (
  add_figures,
  exponent,
  performance_page,
)

LIMITS = {"rollout": 0.5, "score": 0.25, "update": 1.0, "step": 1.75}


def point(value, seconds):
  phases = dict.fromkeys(("rollout", "score", "update"), seconds)
  return {"value": value, **phases, "limits": LIMITS, "peak_rss_mb": 100.0}


def test_figures_are_added_and_replaced(tmp_path):
  file = tmp_path / "performance.json"
  add_figures(file, "a", [1])
  add_figures(file, "b", {"x": 2.0})
  add_figures(file, "a", [3])
  assert json.loads(file.read_text()) == {"a": [3], "b": {"x": 2.0}}


def test_the_exponent_is_that_of_a_power():
  sizes = [1, 4, 16]
  assert exponent(sizes, [3 * n**1.5 for n in sizes]) == pytest.approx(1.5)
  assert exponent(sizes, [2.0, 2.0, 2.0]) == pytest.approx(0.0)


def test_the_page_has_what_was_measured():
  rates = {"flops": 2e11, "bytes": 4e10}
  figures = {
    "machine": "2 cores of it",
    "peers": {
      "limits": LIMITS,
      "libraries": {
        "rlvr": {"name": "rlvr", "peak_rss_mb": 1000.0}
        | {"step": 3.5, "rollout": 1.0, "score": 0.5, "update": 2.0},
        "other": {"name": "other 1.0", "peak_rss_mb": 2000.0}
        | {"step": 7.0, "rollout": 4.0, "score": 1.0, "update": 2.0},
      },
    },
    "products": {
      "about": "64 responses of 127 tokens",
      "rows": [["model", 0.666, 268.7], ["peak", 0.36, 497.2]],
    },
    "growth_batch": {
      "rates": rates,
      "points": [point(64, 1.0), point(256, 4.0)],
    },
    "growth_chain": {
      "rates": rates,
      "points": [{"value": 0, "score": 0.001}, {"value": 32, "score": 0.003}],
    },
    "devices": [
      {"mesh": "1 x 2 x 1", "held": 1 << 20, "temporaries": 2 << 20}
      | {"sent": {"all-gather": 3 << 20, "all-reduce": 1 << 20}}
    ],
  }
  page = performance_page(figures)
  assert "2 cores of it" in page
  assert "| other 1.0 | 7.00 (2.00x) | 4.00 (4.00x) |" in page
  assert "| rlvr: share of the limit | 50% | 50% | 50% | 50% |" in page
  assert "| model | 0.67 | 269 |\n| peak | 0.36 | 497 |" in page
  assert "| exponent | 1.00 | 1.00 | 1.00 |" in page
  # Of 3 x 4 seconds, and its hundredth: 120 ms.
  assert "| 32 | 3.000 (120) | 0.025% | 62.5 |" in page
  # (3 - 1) ms over 32 transforms.
  assert "A transform adds 62.5 µs" in page
  assert "| 1 x 2 x 1 | 1.0 | 2.0 | 4.0 | all-gather 3.0" in page
  assert "Skewed" not in page  # wasn't measured


def test_figures_of_an_accelerator():
  base = {
    "workload": {"num_prompts": 32, "group_size": 8}
    | {"prompt_len": 256, "new_tokens": 512},
    "seconds": {"prefill": 0.5, "rollout": 2.5, "score": 1.0, "update": 4.0},
    "decode_s": 2.0,
    "tokens_per_s": 65536.0,
    "peak_bytes": 3 << 30,
    "sampler_trainer_error": 0.05,
    "prefill_share": 0.4,
    "decode_share": 0.3,
    "update_share": 0.25,
  }
  one = {
    "device": "1 x chip",
    "jax": "0",
    "model": "small",
    "attention": "plain",
    "unrolled": True,
    "weights": "int8",
    "cache": None,
    "peak_tflops": 100.0,
    "peak_gbs": 1000.0,
    "points": {"base": base, "batch=64": {"error": "out of memory"}},
  }
  page = performance_page({"machine": "m", "accelerator/small/plain": one})
  assert "1 x chip, jax 0, peaks 100 TFLOP/s and 1,000 GB/s" in page
  command = (
    "bench_accelerator.py --model=gin/models/small.gin --attention=plain"
    " --num_prompts=32 --group_size=8 --prompt_len=256 --new_tokens=512"
    " --weights=int8 --peak_tflops=100 --peak_gbs=1000 --axis=batch"
    " --figures=docs/performance.json\n"
  )
  assert page.count(command) == 1
  row = "| small int8 |  | plain | unrolled | 0.5 (40%) | 2 (30%) | 65,536 |"
  assert f"{row} 1 | 4 (25%) | 3.0 | 0.05 |" in page
  # Another device has a table of its own; without peaks there are no shares.
  bare = {k: v for k, v in base.items() if not k.endswith("_share")}
  other = one | {
    "device": "8 x other",
    "peak_tflops": None,
    "peak_gbs": None,
    "points": {"base": bare | {"peak_bytes": None}},
  }
  failed = one | {"points": {"base": {"error": "out of memory"}}}
  page = performance_page(
    {"machine": "m", "accelerator/a": one, "accelerator/b": other}
    | {"accelerator/c": failed}
  )
  assert page.count("## On an accelerator") == 2
  assert "8 x other, jax 0, peaks no TFLOP/s given and no GB/s given" in page
  assert "| unrolled | 0.5 | 2 | 65,536 | 1 | 4 |  | 0.05 |" in page


def test_a_machine_must_be_named():
  with pytest.raises(ValueError, match="under 'products' don't say"):
    performance_page({"products": {"about": "", "rows": []}})


def test_tables_of_another_machine_name_it():
  rows = {"about": "", "rows": [["model", 1.0, 2.0]]}
  slots = {"about": "", "roads": []}
  rates = {"flops": 2e11, "bytes": 4e10}
  grown = {"rates": rates, "points": [point(64, 1.0), point(256, 4.0)]}
  chain = [{"value": 0, "score": 0.001}, {"value": 32, "score": 0.003}]
  other = {"machine": "b", "jax": "2"}
  figures = {
    "machine": "a",
    "products": rows,
    "slots": slots | {"machine": "a"},
    "growth_batch": grown,
    "growth_length": grown | other | {"rates": rates | {"bytes": 1e9}},
    "growth_chain": {"points": chain} | other,
    "devices": [],
  }
  page = performance_page(figures)
  assert "Where no other machine is named: a." in page
  assert page.count("Measured on") == 2
  assert "Measured on b, jax 2. Rates: 200 GFLOP/s, 1 GB/s." in page
  # A share of the other machine's step would be of two.
  assert "| 32 | 3.000 |  |" in page
  # Without a machine for all, each names its own.
  both = {"products": rows | other, "slots": slots | other | {"machine": "c"}}
  page = performance_page(both)
  assert "is named: b, jax 2." in page and "Measured on c, jax 2." in page


def test_fixed_sizes_and_exponents_of_devices():
  mib = 1 << 20

  def line(mesh, held, sent):
    limits = {"held": held * mib, "sent": sent * mib / 2}
    kept = {"mesh": mesh, "held": held * mib, "temporaries": 8 * mib}
    return kept | {"sent": {"all-reduce": sent * mib}, "limits": limits}

  lines = [
    *(line("1 x 1 x 1", 64, 0), line("1 x 2 x 1", 32, 4)),
    *(line("1 x 4 x 1", 16, 8), line("2 x 1 x 1", 64, 4)),
    line("2 x 2 x 2", 16, 9),
  ]
  fixed = {"num_prompts": 16, "parameters": 6293760}
  figures = {"machine": "a", "devices": {"lines": lines, "fixed": fixed}}
  page = performance_page(figures)
  assert "Fixed: num_prompts 16, parameters 6,293,760." in page
  assert "| 1 x 4 x 1 | 16.0 (16.0) | 8.0 | 8.0 (4.0) | all-reduce" in page
  assert "| exponent, fsdp | -1.00 | 0.00 | 1.00 |  |" in page
  # One point with more devices has no slope.
  assert "exponent, data" not in page and "exponent, tensor" not in page
