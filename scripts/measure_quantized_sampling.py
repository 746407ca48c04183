"""What each precision of the sampler changes, beside the float32 trainer.

    python scripts/measure_quantized_sampling.py
    python scripts/measure_quantized_sampling.py model.gguf --batches 8
    python scripts/measure_quantized_sampling.py model.gguf --time

MODEL is a Hugging Face folder or a .gguf file; without it a small model is
trained on a Markov chain. Prompts are the model's own text, responses are drawn
at each precision and scored in float32. Figures go to docs/precision.json and
into the tables of docs/precision.md; --time adds the speed of sampling, and
needs a quiet machine. Rewards are the mean of a fixed random number for each
token; responses never end early.

The gradient g* is that of the trainer's own distribution, estimated without
bias on the sampler's tokens: each response weighs Π π/μ, without a cap. Beside
it stand the gradient without weights and the truncated ones.
"""

import argparse
import functools
import json
import os
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from rlvr import models  # noqa: E402
from rlvr.advantages import importance_ratios, truncated_weights  # noqa: E402
from rlvr.advantages.importance import mismatch_statistics  # noqa: E402
from rlvr.evaluation.gradient_bias import gradient_bias  # noqa: E402
from rlvr.models.precision import Precision, sampling_params  # noqa: E402
from rlvr.models.quantized import dequantize, quantize  # noqa: E402
from rlvr.sampling import Sampling, sample  # noqa: E402
from rlvr.types import Prompts  # noqa: E402

OPTIONS = {
  "as trained": {},
  "bfloat16 cache": {"cache": "bfloat16"},
  "bfloat16 weights": {"weights": "bfloat16"},
  "bfloat16 compute": {"compute_dtype": "bfloat16"},
  "int8 cache": {"cache": "int8"},
  "int8 weights": {"weights": "int8"},
  "int8 both": {"weights": "int8", "cache": "int8"},
  "int8 both, bfloat16 compute": {
    "compute_dtype": "bfloat16",
    "weights": "int8",
    "cache": "int8",
  },
}
CAP = 2.0
_SKETCH = 1 << 14
ESTIMATORS = ("uncorrected", "token", "sequence")


def trained_on_a_chain(steps: int = 400):
  """Returns a small model that has learnt a Markov chain."""
  V, S, B = 64, 64, 32
  config = models.ModelConfig(
    vocab_size=V,
    embed_dim=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_dim=128,
    qk_norm=True,
  )
  rng = np.random.default_rng(0)
  table = jnp.asarray(np.log(rng.dirichlet([0.1] * V, V) + 1e-6))

  def text(key):
    def step(last, key):
      token = jax.random.categorical(key, table[last])
      return token, token

    _, tokens = jax.lax.scan(step, 1, jax.random.split(key, S))
    return tokens.astype(jnp.int32)

  adam = optax.adam(optax.linear_schedule(0.0, 3e-3, 50))

  @jax.jit
  def update(params, state, key):
    tokens = jax.vmap(text)(jax.random.split(key, B))
    mask = jnp.ones(tokens.shape, bool)

    def loss(params):
      hidden = models.forward(params, config, tokens, mask)
      found = models.token_statistics(
        params, config, hidden[:, :-1], tokens[:, 1:], temperature=1.0
      )
      return -found.logprobs.mean()

    value, grads = jax.value_and_grad(loss)(params)
    updates, state = adam.update(grads, state)
    return optax.apply_updates(params, updates), state, value

  params = models.init(config, jax.random.key(1))
  state, value = adam.init(params), None
  for i in range(steps):
    params, state, value = update(params, state, jax.random.key(i + 2))
  print(f"trained on a chain: {float(value):.3f} nats a token")
  return config, params


def sketched(tree):
  """Returns float32 [m]: inner products are kept, in expectation.

  Each coordinate goes to its place modulo m with a sign of its own: a count
  sketch, Charikar, Chen and Farach-Colton 2002,
  https://doi.org/10.1007/3-540-45465-9_59.
  """
  total = jnp.zeros((_SKETCH,), jnp.float32)
  for i, x in enumerate(jax.tree.leaves(tree)):
    flat = jnp.pad(x.reshape(-1), (0, -x.size % _SKETCH))
    signs = jax.random.rademacher(
      jax.random.fold_in(jax.random.key(11), i), flat.shape, jnp.int8
    )
    total = total + (flat * signs).reshape(-1, _SKETCH).sum(0)
  return total


def prompts_of(tokens):
  """Returns prompts without padding, with answers that nobody reads."""
  nothing = jnp.zeros((tokens.shape[0], 1), jnp.int32)
  return Prompts(
    tokens=tokens,
    mask=jnp.ones(tokens.shape, bool),
    answer_tokens=nothing,
    answer_mask=nothing > 0,
  )


def own_prompts(params, config, args, batch):
  """Returns prompts that are the model's own text."""
  first = jnp.full((args.prompts, 1), args.start_token, jnp.int32)
  begin = prompts_of(first)
  settings = Sampling(max_tokens=args.prompt_tokens - 1, end_id=-1, pad_id=0)
  text = sample(
    params,
    config,
    begin,
    jax.random.fold_in(jax.random.key(5), batch),
    sampling=settings,
    group_size=1,
  ).tokens
  tokens = jnp.concatenate([first, text], axis=1)
  return prompts_of(tokens)


def scored(params, config, args, rollout):
  """Returns statistics, log-probs, and sketches of g* and its estimators."""
  mask = rollout.completion_mask
  P, G, T = args.prompts, args.group_size, args.tokens

  def logprobs_of(params):
    hidden = models.forward_responses(
      params,
      config,
      rollout.prompts.tokens,
      rollout.prompts.mask,
      rollout.tokens,
      mask,
    )
    return models.token_statistics(
      params, config, hidden, rollout.tokens, temperature=1.0
    ).logprobs

  logprobs, pull = jax.vjp(logprobs_of, params)
  ratios = functools.partial(
    importance_ratios, logprobs, rollout.behavior_logprobs, mask
  )
  values = jax.random.normal(jax.random.key(3), (config.vocab_size,))
  rewards = values[rollout.tokens].mean(-1).reshape(P, G)
  # The mean of the others: independent of the response, so without bias.
  rest = (rewards.sum(-1, keepdims=True) - rewards) / (G - 1)
  advantages = (rewards - rest).reshape(P * G, 1)
  whole = ratios(level="sequence")
  weights = {
    "unbiased": whole,
    "uncorrected": jnp.ones_like(whole),
    "token": truncated_weights(ratios(level="token"), cap=CAP),
    "sequence": truncated_weights(whole, cap=CAP),
  }
  sketches = {
    name: sketched(pull(w * advantages / (P * G * T))[0])
    for name, w in weights.items()
  }
  found = mismatch_statistics(logprobs, rollout.behavior_logprobs, mask)
  found["cut"] = (ratios(level="token") > CAP).mean()
  w = whole[:, 0]
  found["sequence_ess"] = w.sum() ** 2 / (w.size * (w**2).sum())
  return found, sketches


def bytes_of(tree):
  """Returns the bytes of abstract arrays."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def interval(value):
  return [float(value.mean), float(value.low), float(value.high)]


def measure(params, config, args, precision):
  """Returns the figures of one precision, for JSON."""
  settings = Sampling(
    max_tokens=args.tokens, end_id=-1, pad_id=0, precision=precision
  )
  draw = jax.jit(
    lambda params, prompts, key: sample(
      params,
      config,
      prompts,
      key,
      sampling=settings,
      group_size=args.group_size,
    )
  )
  judge = jax.jit(lambda params, r: scored(params, config, args, r))
  begin = jax.jit(
    lambda params, batch: own_prompts(params, config, args, batch)
  )
  statistics, sketches = [], []
  for batch in range(args.batches):
    prompts = begin(params, batch)
    rollout = draw(params, prompts, jax.random.key(1000 + batch))
    one, gradients = jax.device_get(judge(params, rollout))
    statistics.append(one)
    sketches.append(gradients)
  kept = jax.eval_shape(
    lambda p: sampling_params(p, precision.config(config), precision), params
  )
  out = {
    name: float(
      (np.max if name == "change_max" else np.mean)(
        [s[name] for s in statistics]
      )
    )
    for name in statistics[0]
  } | {
    "weight_bytes": bytes_of(kept),
    "layer_bytes": bytes_of(kept["layers"]),
    "cache_bytes": precision.cache_bytes(config),
  }
  best = np.stack([s["unbiased"] for s in sketches])
  for name in ESTIMATORS:
    found = gradient_bias(np.stack([s[name] for s in sketches]), best)
    out[name] = {
      "bias": [found.bias, found.low, found.high],
      "signal": found.signal,
      "error": interval(found.error),
      "cosine": interval(found.cosine),
    }
  return out


def seconds(params, config, args, precision, repeats=5):
  """Returns the least seconds that a batch takes to sample."""
  settings = Sampling(
    max_tokens=args.tokens, end_id=-1, pad_id=0, precision=precision
  )
  prompts = own_prompts(params, config, args, 0)
  draw = jax.jit(
    lambda params, key: (
      sample(
        params,
        config,
        prompts,
        key,
        sampling=settings,
        group_size=args.group_size,
      ).tokens
    )
  )
  taken = []
  for i in range(repeats + 1):
    begin = time.perf_counter()
    jax.block_until_ready(draw(params, jax.random.key(i)))
    taken.append(time.perf_counter() - begin)
  return min(taken[1:])


def groups(params, config, args):
  """Returns relative errors of int8 keys and values, by what a group is."""
  from rlvr.models.decoder import forward_keep

  tokens = own_prompts(params, config, args, 0)
  _, kept = jax.jit(
    lambda p: forward_keep(p, config, tokens.tokens, tokens.mask)
  )(params)
  out = {}
  # [L, rows, S, K, N]
  for what, x in zip(("keys", "values"), kept, strict=True):
    for name, axis in (("token", -1), ("channel", 2)):
      wrong = dequantize(quantize(x, axis)) - x
      share = jnp.sqrt((wrong**2).sum((1, 2, 3, 4)) / (x**2).sum((1, 2, 3, 4)))
      out[f"{what} by {name}"] = float(share.mean())
  return out


def number(x):
  return f"{x:.2g}" if x < 0.1 else f"{x:.3f}"


def spread(triple):
  return f"{number(triple[0])} ({number(triple[1])} to {number(triple[2])})"


def table_of(name, found):
  """Returns a model's part of docs/precision.md."""
  first = next(iter(found["options"].values()))
  settings = found["settings"]
  lines = [
    f"### {name}",
    "",
    f"{found['num_params']:,} parameters; {settings['batches']} batches of"
    f" {settings['prompts']} x {settings['group_size']} responses of"
    f" {settings['tokens']} tokens after {settings['prompt_tokens']}. In the"
    " units of the last three columns the expected gradient itself is"
    f" {number(first['token']['signal'])}.",
    "",
    "| sampled with | mean, max of \\|Δ log p\\|, nats | KL(μ ‖ π) | effective"
    " share of tokens, of responses | tokens cut | weights, MB | cache, bytes a"
    " token | bias without weights | with token weights | with sequence"
    " weights |",
    "|---|---|---|---|---|---|---|---|---|---|",
  ]
  for option, row in found["options"].items():
    cells = [
      option,
      f"{row['change_mean']:.2g}, {row['change_max']:.2g}",
      f"{row['kl']:.2g}",
      f"{row['ess']:.4f}, {row['sequence_ess']:.3f}",
      f"{row['cut']:.2%}",
      f"{row['weight_bytes'] / 1e6:,.2f}",
      f"{row['cache_bytes']:,}",
      *(spread(row[e]["bias"]) for e in ESTIMATORS),
    ]
    lines.append("| " + " | ".join(cells) + " |")
  lines += [
    "",
    "Of one batch, the relative error and the cosine against g*:",
    "",
    "| sampled with | error without weights | with token weights | cosine"
    " without | with |",
    "|---|---|---|---|---|",
  ]
  for option, row in found["options"].items():
    cells = [option]
    cells += [spread(row[e]["error"]) for e in ("uncorrected", "token")]
    cells += [f"{row[e]['cosine'][0]:.5f}" for e in ("uncorrected", "token")]
    lines.append("| " + " | ".join(cells) + " |")
  errors = ", ".join(f"{k} {v:.3%}" for k, v in found["groups"].items())
  lines += [
    "",
    f"Relative error of int8 keys and values, none balanced: {errors}.",
  ]
  if found.get("speed"):
    pairs = ", ".join(f"{k} {v:.2f}x" for k, v in found["speed"].items())
    lines += ["", f"Tokens a second against as trained: {pairs}."]
  return "\n".join(lines)


def write(name, found):
  """Adds a model's figures to docs/precision.json and the page."""
  file = ROOT / "docs" / "precision.json"
  every = json.loads(file.read_text()) if file.exists() else {}
  every[name] = found
  file.write_text(json.dumps(every, indent=1) + "\n")
  page = ROOT / "docs" / "precision.md"
  text = page.read_text()
  begin, end = "<!-- tables -->", "<!-- end of tables -->"
  before, rest = text.split(begin)
  after = rest.split(end)[1]
  tables = "\n\n".join(table_of(n, f) for n, f in every.items())
  page.write_text(f"{before}{begin}\n\n{tables}\n\n{end}{after}")


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("model", nargs="?")
  parser.add_argument("--batches", type=int, default=12)
  parser.add_argument("--prompts", type=int, default=4)
  parser.add_argument("--group_size", type=int, default=8)
  parser.add_argument("--prompt_tokens", type=int, default=32)
  parser.add_argument("--tokens", type=int, default=32)
  parser.add_argument("--start_token", type=int, default=1)
  parser.add_argument("--options", nargs="*", default=list(OPTIONS))
  parser.add_argument("--time", action="store_true")
  args = parser.parse_args()
  jax.config.update("jax_default_matmul_precision", "highest")
  if args.model is None:
    name, (config, params) = (
      "Small model (a Markov chain)",
      trained_on_a_chain(),
    )
  else:
    name = os.path.basename(os.path.normpath(args.model))
    config, params = models.load_pretrained(args.model)
  found = {
    "num_params": models.num_params(config),
    "settings": {
      k: v for k, v in vars(args).items() if isinstance(v, int) and k != "time"
    },
    "options": {},
    "groups": groups(params, config, args),
  }
  speed = {}
  for option in args.options:
    precision = Precision(**OPTIONS[option])
    begin = time.perf_counter()
    found["options"][option] = row = measure(params, config, args, precision)
    if args.time:
      speed[option] = seconds(params, config, args, precision)
    print(f"{option}: {time.perf_counter() - begin:.0f} s")
    print(json.dumps(row), flush=True)
    if speed:
      first = speed[args.options[0]]
      found["speed"] = {k: first / v for k, v in speed.items()}
    write(name, found)  # what a broken-off run has found stays


if __name__ == "__main__":
  main()
