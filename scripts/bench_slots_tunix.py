"""Times Tunix's sampler on static batches; one JSON line.

  PYTHON scripts/bench_slots_tunix.py --harness=FOLDER --longest=310,512 --rows=64

PYTHON is the one that the harness (see scripts/bench_peers.sh) set Tunix up for;
scripts/bench_slots.py --tunix_python calls this. Each batch has --rows responses
to prompts of the harness's length and runs to its longest response, with a cache
of exactly that size; the checkpoint's end token is never drawn. Strings in,
strings out; compiled before it is timed.
"""

import argparse
import json
import os
import pathlib
import random
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def main() -> int:
  """Runs the command line; returns the exit status."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--harness", type=pathlib.Path, required=True)
  parser.add_argument("--longest", required=True, help="tokens of each batch")
  parser.add_argument("--rows", type=int, required=True)
  parser.add_argument("--group_size", type=int, default=8)
  parser.add_argument("--prompt_len", type=int, default=64)
  parser.add_argument("--repeats", type=int, default=3)
  args = parser.parse_args()
  sys.path.insert(0, str(args.harness.resolve()))
  from common import load_config

  settings = load_config()
  model, folder = settings["model"], settings["model_dir"]

  from importlib.metadata import version

  import jax
  import jax.numpy as jnp
  from transformers import AutoTokenizer
  from tunix.generate import sampler
  from tunix.models.qwen3 import model as qwen3
  from tunix.models.qwen3 import params as qwen3_params

  config = qwen3.ModelConfig(
    num_layers=model["num_hidden_layers"],
    vocab_size=model["vocab_size"],
    embed_dim=model["hidden_size"],
    hidden_dim=model["intermediate_size"],
    num_heads=model["num_attention_heads"],
    head_dim=model["head_dim"],
    num_kv_heads=model["num_key_value_heads"],
    rope_theta=int(model["rope_theta"]),
    norm_eps=model["rms_norm_eps"],
    use_tied_embedding=model["tie_word_embeddings"],
    dtype=jnp.float32,
    param_dtype=jnp.float32,
  )
  kinds = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=kinds)
  with mesh:
    policy = qwen3_params.create_model_from_safe_tensors(
      folder, config, mesh, dtype=jnp.float32
    )
  tokenizer = AutoTokenizer.from_pretrained(folder)
  rng = random.Random(settings["workload"]["prompt_seed"])
  last = min(model["pad_token_id"], model["eos_token_id"]) - 1

  def batch() -> list[str]:
    texts = []
    for _ in range(args.rows // args.group_size):
      words = [f"t{rng.randint(0, last)}" for _ in range(args.prompt_len)]
      texts.extend([" ".join(words)] * args.group_size)
    return texts

  seconds = []
  for longest in map(int, args.longest.split(",")):
    with mesh:
      run = sampler.Sampler(
        policy,
        tokenizer,
        sampler.CacheConfig(
          cache_size=args.prompt_len + longest,
          num_layers=config.num_layers,
          num_kv_heads=config.num_kv_heads,
          head_dim=config.head_dim,
        ),
      )
      texts, best = batch(), float("inf")
      for repeat in range(args.repeats + 1):
        begin = time.perf_counter()
        found = run(
          texts,
          max_generation_steps=longest,
          max_prompt_length=args.prompt_len,
          temperature=1.0,
          top_p=1.0,
          seed=repeat,
          eos_tokens=[model["eos_token_id"]],
        )
        if repeat:  # the first compiles
          best = min(best, time.perf_counter() - begin)
      sizes = {len(row) for row in found.tokens}
      if sizes != {longest}:
        raise ValueError(f"responses of {sizes} tokens, not {longest}")
    seconds.append(round(best, 4))
  name = f"Tunix {version('google-tunix')}"
  print(json.dumps({"name": name, "seconds": seconds}), flush=True)
  return 0


if __name__ == "__main__":
  sys.exit(main())
