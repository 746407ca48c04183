"""Makes families/*.npz: logits and continuations of `transformers`' own models.

    pip install transformers==5.23.0 torch==2.13.0 numpy
    python tests/reference/make_families_transformers.py tests/reference/families

For each family a tiny checkpoint with what is peculiar to the family switched
on: grouped heads, head sizes other than D/H, biases, norms that are not 1,
soft-caps, windows shorter than the sequences, rope scaling with sequences past
the original length. The weights are drawn and are numbers of float16, so that
they can be stored in half the space; everything is computed in float32.
`tests/models/test_families.py` compares.
"""

import importlib.metadata
import json
import pathlib
import sys

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY, LENGTH, CONTINUED = 48, 24, 64
LENGTHS = (24, 17)  # tokens of the two rows
LEAST_MARGIN = 0.01  # between the two likeliest tokens of every continued one
COMMON = {
  "vocab_size": VOCABULARY,
  "hidden_size": 20,
  "intermediate_size": 28,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "rms_norm_eps": 1e-5,
  "max_position_embeddings": 128,
  "bos_token_id": None,
  "eos_token_id": None,
  "pad_token_id": None,
}
# In the form of the published files.
CASES = {
  "qwen2": {
    "model_type": "qwen2",
    "num_attention_heads": 2,  # of 10
    "num_key_value_heads": 1,
    "rope_theta": 500.0,
    "rope_scaling": {
      "type": "yarn",
      "factor": 8.0,
      "original_max_position_embeddings": 12,
      # So that the ramp lies within five pairs.
      "beta_fast": 0.4,
      "beta_slow": 0.05,
    },
    "max_position_embeddings": 96,
    "tie_word_embeddings": True,
  },
  "qwen2_windows": {
    "model_type": "qwen2",
    "num_attention_heads": 10,  # of 2
    "num_key_value_heads": 5,
    "use_sliding_window": True,
    "sliding_window": 7,
    "max_window_layers": 1,
    "tie_word_embeddings": False,
  },
  "qwen3": {
    "model_type": "qwen3",
    "head_dim": 6,  # not 5
    "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    "rope_theta": 1000.0,
    "tie_word_embeddings": False,
  },
  "llama3": {
    "model_type": "llama",
    "head_dim": 14,
    "rope_theta": 200.0,
    "rope_scaling": {
      "rope_type": "llama3",
      "factor": 8.0,
      "low_freq_factor": 1.0,
      "high_freq_factor": 4.0,
      "original_max_position_embeddings": 20,
    },
    "tie_word_embeddings": False,
  },
  "smollm2": {
    "model_type": "llama",
    "hidden_size": 18,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
  },
  "gemma2": {
    "model_type": "gemma2",
    "head_dim": 6,
    "query_pre_attn_scalar": 3,
    "sliding_window": 6,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 6.0,
  },
  "gemma3": {
    "model_type": "gemma3_text",
    "num_hidden_layers": 4,
    "head_dim": 10,
    "query_pre_attn_scalar": 3,
    "sliding_window": 6,
    "sliding_window_pattern": 3,
    "rope_theta": 1000.0,
    "rope_local_base_freq": 20.0,
    "rope_scaling": {"rope_type": "linear", "factor": 4.0},
  },
}


def drawn(name: str, shape, rng, norm_start: float) -> np.ndarray:
  """Returns a tensor that hides no mistake: nowhere 0 or 1."""
  noise = rng.normal(size=shape)
  if "norm" in name:
    # What layers add outweighs the embedding, or tied heads repeat their input.
    more = "post_" in name and norm_start == 0.0
    value = norm_start + more + 0.3 * noise
  elif name.endswith("bias"):
    value = 0.5 * noise
  else:
    value = 1.5 * noise / shape[-1] ** 0.5
  return value.astype(np.float16)


def make(fields: dict, seed: int):
  """Returns a case's arrays, and how near its continuation is to another."""
  fields = COMMON | fields
  kind = fields["model_type"]
  config = AutoConfig.for_model(**fields, attn_implementation="eager")
  model = AutoModelForCausalLM.from_config(config).float().eval()
  rng = np.random.default_rng(seed)
  weights = {}
  norm_start = 0.0 if kind.startswith("gemma") else 1.0
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      weights[name] = drawn(name, tuple(parameter.shape), rng, norm_start)
      parameter.copy_(torch.tensor(weights[name].astype(np.float32)))
  row = np.arange(LENGTH)[None]
  lengths = np.array(LENGTHS)[:, None]
  arrays = {f"weight/{k}": v for k, v in weights.items()}
  tokens = rng.integers(1, VOCABULARY, size=(2, LENGTH))
  for side, mask in {
    "left": row >= LENGTH - lengths,
    "right": row < lengths,
  }.items():
    ids = torch.tensor(tokens * mask)
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    with torch.no_grad():
      out = model(
        input_ids=ids,
        attention_mask=torch.tensor(mask.astype(np.int64)),
        position_ids=torch.tensor(positions),
      ).logits
    arrays[f"{side}/tokens"] = (tokens * mask).astype(np.int8)
    arrays[f"{side}/mask"] = mask
    arrays[f"{side}/logits"] = out.numpy()[mask]  # of the tokens, row by row
    if side == "left":
      with torch.no_grad():
        found = model.generate(
          input_ids=ids,
          attention_mask=torch.tensor(mask.astype(np.int64)),
          max_new_tokens=CONTINUED,
          do_sample=False,
          pad_token_id=0,
          output_logits=True,
          return_dict_in_generate=True,
        )
      continued = found.sequences.numpy()[:, LENGTH:]
      best = np.sort(torch.stack(found.logits, 1).numpy(), -1)[..., -2:]
      margin = float((best[..., 1] - best[..., 0]).min())
      arrays["continuation"] = continued.astype(np.int8)
  about = {
    "command": "python tests/reference/make_families_transformers.py"
    " tests/reference/families",
    "transformers": importlib.metadata.version("transformers"),
    "torch": importlib.metadata.version("torch"),
    "seed": seed,
    "least_margin": margin,
    "architecture": type(model).__name__,
    "config": fields,
    # As version 5 writes it.
    "config_saved": json.loads(model.config.to_json_string(use_diff=False)),
  }
  arrays["about"] = np.array(json.dumps(about))
  distinct = min(len(set(line.tolist())) for line in continued)
  return arrays, margin, distinct


def main(folder: str) -> None:
  """Writes one file for each case."""
  out = pathlib.Path(folder)
  out.mkdir(parents=True, exist_ok=True)
  torch.set_num_threads(1)
  for name, fields in CASES.items():
    # A continuation that turns on a rounding, or that only repeats, shows
    # nothing: the first seed without.
    for seed in range(100):
      arrays, margin, distinct = make(fields, seed)
      if margin > LEAST_MARGIN and distinct >= 6:
        break
    else:
      raise SystemExit(f"{name}: no seed gives a continuation that is clear")
    path = out / f"{name}.npz"
    np.savez_compressed(path, **arrays)
    size = path.stat().st_size
    print(
      f"{name}: seed {seed}, margin {margin:.3f}, {distinct} tokens, {size}"
    )


if __name__ == "__main__":
  main(sys.argv[1])
