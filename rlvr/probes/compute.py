"""Runs the probes that a chain and an objective ask for, each pass once."""

import dataclasses
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from rlvr.segments import after_last_delimiter
from rlvr.types import Array, Rollout


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeSettings:
  """What the probes need to know of the task; static under jit."""

  end_id: int  # the token that ends a response
  answer_delimiter: tuple[int, ...] = ()  # what stands before a final answer
  start_id: int | None = None  # stands in for the prompt where there is none
  self_reward_id: int | None = None  # z_c of last-token self-rewarding


# (prompt tokens [P, S], prompt mask, tokens [B, T], mask, group or None)
#   -> what `POLICY_PROBES` names ("values" if the model has them), each [B, T]
#      or, "hidden", [B, T, D]; further names are kept as they are.
Scorer = Callable[[Array, Array, Array, Array, Array | None], dict[str, Array]]

POLICY_PROBES = frozenset(
  (
    "logprobs",
    "entropies",
    "uniform_kl",
    "token_logits",
    "max_logits",
    "max_logprobs",
    "values",
    "hidden",
  )
)
# Of a reference answer's tokens: [B, R], not [B, T].
ANSWER_PROBES = frozenset(
  ("answer_mask", "answer_logprobs", "answer_logprobs_no_reasoning")
)
# From passes with something else in the place of the prompt.
OTHER_PROMPTS = frozenset(
  ("prompt_free_logprobs", "answer_logprobs_no_reasoning")
)
_LAST = ("last_token_logprobs", "ref_last_token_logprobs")
_PLAIN = ("answer_mask", "answer_span", "answer_ids")
PROBES = frozenset(
  (
    *POLICY_PROBES,
    *_LAST,
    *_PLAIN,
    "unembedding",
    "prompt_logprobs",
    "ref_logprobs",
    "prompt_free_logprobs",
    "answer_logprobs",
    "answer_logprobs_no_reasoning",
  )
)


def check_probes(
  names: Iterable[str],
  settings: ProbeSettings,
  *,
  has_reference: bool,
  has_values: bool,
) -> frozenset[str]:
  """Returns the names as a set if all of them can be computed.

  Raises:
    ValueError: an unknown probe, or one whose setting, reference model or
      value head is missing; says which to give.
  """
  names = frozenset(names)
  if unknown := names - PROBES:
    raise ValueError(
      f"unknown probes {sorted(unknown)} in a transform's `requires`; there"
      f" are {sorted(PROBES)}"
    )
  needs_reference = {n for n in names if n.startswith("ref_")}
  if needs_reference and not has_reference:
    raise ValueError(
      f"probes {sorted(needs_reference)} need a reference model: set"
      " `train.reference`, or take out the transform that asks for them"
    )
  if "values" in names and not has_values:
    raise ValueError("probe 'values' needs ModelConfig.value_head = True")
  if names & set(_LAST) and settings.self_reward_id is None:
    raise ValueError(
      "last-token self-rewarding needs ProbeSettings.self_reward_id: name a"
      " token of the vocabulary that no text uses"
    )
  if "prompt_free_logprobs" in names and settings.start_id is None:
    raise ValueError(
      "probe 'prompt_free_logprobs' needs ProbeSettings.start_id: the token"
      " that stands in for the prompt (the vocabulary's BOS, or its EOS)"
    )
  return names


def compute_probes(
  names: frozenset[str],
  rollout: Rollout,
  *,
  policy: Scorer,
  reference: Scorer | None,
  settings: ProbeSettings,
  even_groups: bool,
  stop_gradient: bool = True,
  statistics: Iterable[str] = (),
  score_prompts: Callable[[Array, Array], Array] | None = None,
  unembedding: Array | None = None,
) -> dict[str, Array]:
  """Returns the named probes; see the package's docstring for each.

  Args:
    names: checked by `check_probes`.
    rollout: the responses.
    policy: forward pass of the policy as it is now.
    reference: forward pass of the reference model.
    settings: the task's token ids.
    even_groups: every prompt has B/P responses (prompts then are computed
      once in a pass).
    stop_gradient: false keeps the gradient, for a loss.
    statistics: further names that `policy` gives, to be returned as well.
    score_prompts: (tokens [P, S], mask) -> log-probs [P, S], for
      `prompt_logprobs`.
    unembedding: [V, D], for the probe of that name.

  Returns:
    Arrays, 0 outside their masks.
  """
  r = rollout
  group = None if even_groups else r.group
  mask = r.completion_mask
  span = after_last_delimiter(
    r.tokens,
    mask & (r.tokens != settings.end_id),
    settings.answer_delimiter,
  )
  answers = r.prompts.answer_tokens[r.group]
  answer_mask = r.prompts.answer_mask[r.group]
  out: dict[str, Array] = {}

  def run(scorer, tokens, token_mask):
    return scorer(r.prompts.tokens, r.prompts.mask, tokens, token_mask, group)

  def with_last():
    """The response with z_c behind it; causal, so nothing before it moves."""
    padded = jnp.pad(r.tokens, ((0, 0), (0, 1)))
    at = jnp.arange(padded.shape[1])[None] == r.lengths[:, None]
    padded = jnp.where(at, settings.self_reward_id, padded)
    return padded, jnp.pad(mask, ((0, 0), (0, 1))) | at, at

  for scorer, wanted, prefix in (
    (policy, names & {*POLICY_PROBES, _LAST[0]} | {*statistics}, ""),
    (reference, names & {"ref_logprobs", _LAST[1]}, "ref_"),
  ):
    if not wanted:
      continue
    last = f"{prefix}last_token_logprobs"
    if last in wanted:
      tokens, token_mask, at = with_last()
      found = run(scorer, tokens, token_mask)
      out[last] = jnp.where(at, found["logprobs"], 0.0).sum(-1)
    else:
      found = run(scorer, r.tokens, mask)
    for name in wanted - {last}:
      value = found[name.removeprefix("ref_") if prefix else name]
      value = value[:, : mask.shape[1]]
      here = mask if value.ndim == 2 else mask[:, :, None]
      out[name] = jnp.where(here, value, 0.0)

  if "unembedding" in names:
    assert unembedding is not None, "compute_probes: give `unembedding`"
    out["unembedding"] = unembedding
  if "prompt_logprobs" in names:
    assert score_prompts is not None, "compute_probes: give `score_prompts`"
    prompt_mask = r.prompts.mask
    # A left-padded prompt's first token is predicted from nothing.
    scored = prompt_mask & jnp.pad(prompt_mask[:, :-1], ((0, 0), (1, 0)))
    found = score_prompts(r.prompts.tokens, prompt_mask)
    out["prompt_logprobs"] = jnp.where(scored, found, 0.0)
  if "prompt_free_logprobs" in names:
    assert settings.start_id is not None  # check_probes saw to it
    start = jnp.full((1, 1), settings.start_id, jnp.int32)
    found = policy(start, jnp.ones((1, 1), bool), r.tokens, mask, None)
    out["prompt_free_logprobs"] = jnp.where(mask, found["logprobs"], 0.0)
  if "answer_logprobs" in names:
    # Reasoning up to the answer, then the reference answer in its place. A
    # response without a delimiter is reasoning as a whole; the delimiter is
    # then put behind it. One more position tells a response that ends with
    # the delimiter, whose answer is empty, from one without.
    length = (mask & (r.tokens != settings.end_id)).sum(-1)
    place = jnp.arange(mask.shape[1] + 1)[None]
    after = after_last_delimiter(
      jnp.where(
        place == length[:, None],
        settings.end_id,
        jnp.pad(r.tokens, ((0, 0), (0, 1))),
      ),
      place <= length[:, None],
      settings.answer_delimiter,
    )
    with_delimiter, with_mask = _before_answers(
      settings.answer_delimiter, answers, answer_mask
    )
    bare, bare_mask = _before_answers((), answers, answer_mask)
    width = with_delimiter.shape[1]
    bare = jnp.pad(bare, ((0, 0), (0, width - bare.shape[1])))
    bare_mask = jnp.pad(bare_mask, ((0, 0), (0, width - bare_mask.shape[1])))
    has = after.any(-1)
    reasoning = jnp.where(has, jnp.argmax(after, axis=-1), length)
    tail = jnp.where(has[:, None], bare, with_delimiter)
    tail_mask = jnp.where(has[:, None], bare_mask, with_mask)
    skip = jnp.where(has, 0, len(settings.answer_delimiter))
    tokens, token_mask = _splice(r.tokens, reasoning, tail, tail_mask)
    found = run(policy, tokens, token_mask)["logprobs"]
    index = (reasoning + skip)[:, None] + jnp.arange(answers.shape[1])[None]
    found = jnp.take_along_axis(
      found, jnp.minimum(index, found.shape[1] - 1), axis=1
    )
    out["answer_logprobs"] = jnp.where(answer_mask, found, 0.0)
  if "answer_logprobs_no_reasoning" in names:
    # One pass over the P prompts, not the B responses.
    p = r.prompts
    tokens, token_mask = _before_answers(
      settings.answer_delimiter, p.answer_tokens, p.answer_mask
    )
    found = policy(p.tokens, p.mask, tokens, token_mask, None)["logprobs"]
    found = found[:, len(settings.answer_delimiter) :]
    found = jnp.where(p.answer_mask, found, 0.0)
    out["answer_logprobs_no_reasoning"] = found[r.group]
  if "answer_mask" in names:
    out["answer_mask"] = answer_mask
  if "answer_span" in names:
    out["answer_span"] = span
  if "answer_ids" in names:
    out["answer_ids"] = answer_identities(r.tokens, span)
  if not stop_gradient:
    return out
  return {k: jax.lax.stop_gradient(v) for k, v in out.items()}


def answer_identities(tokens: Array, span: Array) -> Array:
  """Returns int32 [B]: the first response of the batch with the same answer.

  Args:
    tokens: int32 [B, T].
    span: bool [B, T], a contiguous stretch: the answer's tokens.

  Returns:
    int32 [B], -1 for a response without an answer.
  """
  length = tokens.shape[1]
  start = jnp.argmax(span, axis=-1)
  index = jnp.minimum(start[:, None] + jnp.arange(length)[None], length - 1)
  inside = jnp.arange(length)[None] < span.sum(-1)[:, None]
  left = jnp.where(inside, jnp.take_along_axis(tokens, index, axis=1), -1)
  same = (left[:, None, :] == left[None, :, :]).all(-1)
  return jnp.where(span.any(-1), jnp.argmax(same, axis=-1), -1).astype(
    jnp.int32
  )


def _before_answers(delimiter, answers, answer_mask):
  """[N, d + R]: the delimiter, then the answer."""
  count = answers.shape[0]
  head = jnp.tile(jnp.asarray(delimiter, jnp.int32)[None], (count, 1))
  ones = jnp.ones((count, len(delimiter)), bool)
  return (
    jnp.concatenate([head, answers], axis=1),
    jnp.concatenate([ones, answer_mask], axis=1),
  )


def _splice(tokens, at, tail, tail_mask):
  """[B, T + W]: the first `at` tokens of each row, then its tail."""
  T, W = tokens.shape[1], tail.shape[1]
  position = jnp.arange(T + W)[None]
  offset = position - at[:, None]
  behind = (offset >= 0) & (offset < W)
  index = jnp.clip(offset, 0, W - 1)
  late = jnp.take_along_axis(tail, index, axis=1)
  late_mask = jnp.take_along_axis(tail_mask, index, axis=1) & behind
  early = jnp.pad(tokens, ((0, 0), (0, W)))
  before = position < at[:, None]
  return (
    jnp.where(before, early, jnp.where(late_mask, late, 0)),
    before | late_mask,
  )
