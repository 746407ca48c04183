"""Held-out accuracy: greedy, and pass@k from independent samples."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh

from rlvr.data.sources import Batch, PromptSource
from rlvr.evaluation.metrics import pass_at_k, wilson_interval
from rlvr.infra import exchange
from rlvr.infra.hosts import current
from rlvr.meshes import ONE_DEVICE, RULES, Rules, make_mesh, on_mesh
from rlvr.models import ModelConfig
from rlvr.sampling import Sampling, sample
from rlvr.sharding import (
  batch_sharding,
  check_rows,
  param_shardings,
  replicated,
)
from rlvr.types import Array, Params, Rollout, Signals, Verdict
from rlvr.verifiers.host import give_policy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """How often and how a run is evaluated.

  Raises:
    ValueError: a k above the number of samples, or a bad count.
  """

  every: int  # steps; also before the first and after the last
  num_prompts: int  # prompts in a batch of the evaluation
  max_prompts: int | None = None  # held-out prompts used; None: all
  samples: int = 0  # per prompt for pass@k; 0: greedy alone
  ks: Sequence[int] = ()
  temperature: float = 1.0  # of those samples
  show: int = 4  # responses kept for the samples table

  def __post_init__(self):
    if self.every < 1 or self.num_prompts < 1 or self.samples < 0:
      raise ValueError(
        f"Evaluation: every={self.every}, num_prompts={self.num_prompts} must"
        f" be at least 1 and samples={self.samples} at least 0"
      )
    if self.max_prompts is not None and self.max_prompts < 1:
      raise ValueError(
        f"Evaluation.max_prompts={self.max_prompts} must be at least 1, or None"
        " for all"
      )
    if bad := [k for k in self.ks if not 1 <= k <= self.samples]:
      raise ValueError(
        f"Evaluation.ks={list(self.ks)}: {bad} need 1 <= k <= samples="
        f"{self.samples}: raise `samples`"
      )


def decode_responses(vocabulary: Any, rollout: Rollout) -> list[str]:
  """Returns the text of each response, without its end token.

  Args:
    vocabulary: decodes token ids.
    rollout: on the host or the device.
  """
  tokens = np.asarray(rollout.tokens)
  mask = np.asarray(rollout.completion_mask)
  end = vocabulary.eos_id
  return [
    vocabulary.decode([int(i) for i in row[keep] if i != end])
    for row, keep in zip(tokens, mask, strict=True)
  ]


def verify_text(
  verifier: Any, vocabulary: Any, rollout: Rollout, batch: Batch
) -> Any:
  """Returns the pending signals of a host verifier that was just started.

  Each host verifies the responses that it holds; `result` gives all of them, on
  every host, in NumPy. All hosts call both.

  Args:
    verifier: see `rlvr.verifiers.host.HostVerifier`.
    vocabulary: decodes token ids.
    rollout: global arrays.
    batch: the prompts, all of them.
  """
  rollout = dataclasses.replace(rollout, prompts=cast(Any, None))
  owner = exchange.owners(rollout.tokens)
  rows = np.flatnonzero(owner == current().index)
  mine = exchange.own_rows(rollout, rows)
  pending = verifier.start(
    decode_responses(vocabulary, mine),
    [batch.references[i] for i in mine.group],
    [batch.metadata[i] for i in mine.group],
    mine.finished,
  )
  return _OverHosts(pending, rows, owner) if current().several else pending


class _OverHosts:
  """Signals that each host works on for its own responses."""

  def __init__(self, pending: Any, rows: np.ndarray, owner: np.ndarray):
    self._pending, self._rows, self._owner = pending, rows, owner

  def result(self) -> Signals:
    """Returns the signals of all hosts' responses."""
    signals = self._pending.result()
    # A host whose verifier fails never comes to the exchange.
    current().barrier("signals of the verifier")
    return exchange.join_rows(signals, self._rows, self._owner)


class Evaluator:
  """Evaluates parameters on held-out prompts; one compilation for all calls."""

  def __init__(
    self,
    evaluation: Evaluation,
    *,
    model: ModelConfig,
    sampling: Sampling,
    source: PromptSource,
    vocabulary: Any,
    verifier: Any,
    on_device: bool,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
  ):
    """Args as in `train`; `sampling` gives the limits, not the temperature."""
    mesh = make_mesh(ONE_DEVICE) if mesh is None else mesh
    check_rows(evaluation.num_prompts, "Evaluation.num_prompts", mesh, rules)
    rows, whole = batch_sharding(mesh, rules), replicated(mesh)
    params = param_shardings(model, mesh, rules)
    self._rows, self._whole = rows, whole
    self._evaluation = evaluation
    self._source = source
    self._vocabulary = vocabulary
    self._verifier = verifier
    self._on_device = on_device
    self._forms = [
      (1, dataclasses.replace(sampling, temperature=0.0, top_k=0, top_p=1.0))
    ]
    if evaluation.samples:
      drawn = dataclasses.replace(sampling, temperature=evaluation.temperature)
      self._forms.append((evaluation.samples, drawn))

    def run(form):
      group_size, settings = form

      def one(params, prompts, key):
        rollout = sample(
          params, model, prompts, key, sampling=settings, group_size=group_size
        )
        return rollout, verifier(rollout, key) if on_device else None

      return jax.jit(
        on_mesh(one, mesh, rules),
        in_shardings=(params, rows, whole),
        out_shardings=rows,
      )

    self._run = [run(form) for form in self._forms]

  def __call__(
    self, params: Params, key: Array
  ) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Returns figures by name and some responses for display.

    A response whose verifier failed is no wrong answer: it is left out of
    accuracy and counted under `eval/failed`.

    Args:
      params: the policy's parameters.
      key: PRNG key of the samples for pass@k; greedy takes none.
    """
    if not self._on_device:
      give_policy(self._verifier, params)
    limit = self._evaluation.max_prompts or self._source.num_examples
    greedy, lengths, finished = [], [], []
    right, known = [], []
    rows: list[dict[str, Any]] = []
    seen = 0
    for i, batch in enumerate(
      self._source.all_batches(self._evaluation.num_prompts)
    ):
      real = batch.real & (np.arange(len(batch.real)) < limit - seen)
      if not real.any():
        break
      seen += int(real.sum())
      for form, run in enumerate(self._run):
        current().at(f"evaluation, batch {i}")
        rollout, signals = run(
          *(params, exchange.put(batch.prompts, self._rows)),
          exchange.put(jax.random.fold_in(key, i), self._whole),
        )
        if not self._on_device:
          pending = verify_text(
            self._verifier, self._vocabulary, rollout, batch
          )
          signals = pending.result()
        rollout, signals = exchange.whole((rollout, signals))
        verdict = next(iter(signals.verdicts.values()))
        if form == 0:
          greedy.append(verdict[real])
          lengths.append(rollout.completion_mask.sum(-1)[real])
          finished.append(rollout.finished[real])
          if len(rows) < self._evaluation.show:
            rows += response_rows(
              self._vocabulary, batch, rollout, signals, kind="eval"
            )[: int(real.sum())]
        else:
          grid = verdict.reshape(len(real), -1)[real]
          right.append((grid == Verdict.CORRECT).sum(-1))
          known.append((grid < Verdict.VERIFIER_FAILED).sum(-1))
    verdicts = np.concatenate(greedy)
    correct = int((verdicts == Verdict.CORRECT).sum())
    judged = int((verdicts < Verdict.VERIFIER_FAILED).sum())
    low, high = wilson_interval(correct, judged) if judged else (0.0, 1.0)
    figures = {
      "eval/accuracy": correct / judged if judged else float("nan"),
      "eval/accuracy_low": float(low),
      "eval/accuracy_high": float(high),
      "eval/num_prompts": float(len(verdicts)),
      "eval/failed": float(len(verdicts) - judged),
      "eval/length_mean": float(np.concatenate(lengths).mean()),
      "eval/truncated": 1.0 - float(np.concatenate(finished).mean()),
    }
    if right:
      c, n = np.concatenate(right), np.concatenate(known)
      for k in self._evaluation.ks:
        usable = n >= k
        figures[f"eval/pass@{k}"] = float(
          np.mean(pass_at_k(n[usable], c[usable], k))
          if usable.any()
          else np.nan
        )
    return figures, rows[: self._evaluation.show]


def response_rows(
  vocabulary: Any,
  batch: Batch,
  rollout: Rollout,
  signals: Signals,
  *,
  kind: str,
  advantages: np.ndarray | None = None,
  rewards: Mapping[str, np.ndarray] | None = None,
) -> list[dict[str, Any]]:
  """Returns a row per response as the samples log and table take it.

  Args:
    vocabulary: decodes token ids.
    batch: the prompts.
    rollout: responses, on the host.
    signals: what the verifier said.
    kind: "eval" or "train".
    advantages: float [B, T]; the row shows the first token's.
    rewards: further rewards by name, float [B].
  """
  texts = decode_responses(vocabulary, rollout)
  verdicts = next(iter(signals.verdicts.values()), None)
  outcome: dict[str, Any] = {**signals.outcome, **(rewards or {})}
  rows = []
  for i, text in enumerate(texts):
    prompt = int(rollout.group[i])
    rows.append(
      {
        "kind": kind,
        "prompt": batch.prompt_texts[prompt],
        "response": text,
        "reference": batch.references[prompt],
        "verdict": ""
        if verdicts is None
        else Verdict(int(verdicts[i])).name.lower(),
        "rewards": {k: float(v[i]) for k, v in outcome.items()},
        "advantage": None if advantages is None else float(advantages[i, 0]),
      }
    )
  return rows
