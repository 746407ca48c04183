"""The run: data, state, restore, loop. Both supervised and RL."""

import functools
import json
import math
import time
from typing import Any

import jax
import jax.numpy as jnp

from rlvr import models, sharding
from rlvr.books import Books
from rlvr.data import TaskSpec, open_source, required_vocab_size
from rlvr.data.sources import TooLong
from rlvr.evaluate import Evaluation, Evaluator
from rlvr.infra import exchange, shards
from rlvr.infra.checkpoints import Checkpoints
from rlvr.infra.compilation import CompileWatch
from rlvr.infra.hosts import current
from rlvr.infra.metrics import MetricLog, SampleLog
from rlvr.infra.profile_page import profile_of
from rlvr.infra.profiling import parse_steps
from rlvr.infra.progress import Progress
from rlvr.infra.report import write_report
from rlvr.infra.run_folder import RunFolder
from rlvr.infra.shared_folder import check_same_run, open_for_hosts
from rlvr.loops import Reinforcement, Setup, Supervised
from rlvr.meshes import (
  ONE_DEVICE,
  RULES,
  MeshShape,
  Rules,
  devices_text,
  make_mesh,
)
from rlvr.outcome import Rows
from rlvr.recipe import Recipe
from rlvr.sampling import Sampling
from rlvr.step import abstract_state, init_state
from rlvr.types import Params, TrainState
from rlvr.verifiers.specs import VerifierSpec


class TrainingStopped(RuntimeError):
  """Going on would train on rubbish; the state before is saved."""


def train(
  *,
  run_dir: str,
  loop: Reinforcement | Supervised,
  model: models.ModelConfig,
  task: TaskSpec,
  vocabulary: Any,
  prompt_length: int,
  answer_length: int,
  max_tokens: int,
  total_steps: int,
  seed: int,
  evaluation: Evaluation,
  eval_verifier: VerifierSpec,
  save_every: int,
  answer_delimiter: str = "",
  step_delimiters: str = "",
  max_steps: int = 1,
  prompt_template: str = "{question}",
  too_long: TooLong = "drop",
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
  slots: int = 0,
  unroll_sampling: bool | None = None,
  attention: str | None = None,
  mesh: MeshShape = ONE_DEVICE,
  rules: Rules = RULES,
  sampling_rules: Rules | None = None,
  initial_params: str | None = None,
  keep: int = 2,
  keep_best: int = 1,
  checkpoint_dir: str | None = None,
  max_missing: float = 0.5,
  tensorboard: bool = True,
  config_text: str = "",
  operative_config: Any = None,
  profile_steps: str = "",
  resume: bool = False,
  dry_run: bool = False,
) -> dict[str, float]:
  """Runs an experiment; returns the last evaluation's figures.

  Args:
    run_dir: folder for everything that the run leaves.
    loop: what a step does.
    model: the policy's shape.
    task: prompts, references and targets.
    vocabulary: tokens.
    prompt_length: S, tokens; a longer prompt goes by `too_long`.
    answer_length: R, tokens of a reference answer.
    max_tokens: T, tokens of a response or target, the end token included.
    total_steps: batches of the whole run.
    seed: of parameters, data order and sampling.
    evaluation: how often and how.
    eval_verifier: what counts as right, whatever the reward is.
    save_every: steps between checkpoints.
    answer_delimiter: text before a final answer; "" if the response is the
      answer.
    step_delimiters: characters, each a token, that end a reasoning step.
    max_steps: K, reasoning steps that are told apart.
    prompt_template: the prompt, with `{question}` in it.
    too_long: "drop" (counted and reported) or "error".
    temperature: of sampling, as are top_k, top_p, min_p.
    top_k: 0 is off.
    top_p: 1 is off.
    min_p: 0 is off.
    slots: responses that decode at a time, see `Sampling`; 0: all of a batch.
    unroll_sampling: `Sampling.unroll_layers`; None: unrolled on GPUs, else as
      `model` says.
    attention: the policy's kernel, see `rlvr.models.kernels`; "auto" is the
      platform's. None: what `model` says.
    mesh: devices along (data, fsdp, tensor).
    rules: how parameters, state and batches lie on them.
    sampling_rules: the same while responses are sampled; None: as in training.
    initial_params: a Hugging Face folder, a .gguf file, or the checkpoint
      folder of another run; None draws them.
    keep: newest checkpoints kept.
    keep_best: best checkpoints kept besides.
    checkpoint_dir: where checkpoints go instead of `run_dir/checkpoints`, such
      as a bucket (gs://...), which the hosts of a slice need in common.
    max_missing: greatest share of responses without a reward that a step may
      have; above it the run stops.
    tensorboard: whether to write event files.
    config_text: the configuration as given, for the run folder.
    operative_config: () -> text of the configuration as used.
    profile_steps: "10-12", or "+3-4" for the third and fourth step of this
      process: traced into `run_dir/profile`, with a table; "" traces none.
    resume: go on with the run in `run_dir`.
    dry_run: print the plan and stop; nothing is written.

  Raises:
    ValueError: settings or data that can't work, with the name to change.
    TrainingStopped: not finite, or too many rewards missing.
  """
  hosts = current()
  devices = make_mesh(mesh)
  platform = devices.devices.flat[0].platform
  model = models.for_platform(model, platform, attention)
  needed = required_vocab_size(vocabulary)
  if model.vocab_size < needed:
    raise ValueError(
      f"ModelConfig.vocab_size={model.vocab_size} is too small for the"
      f" vocabulary: it needs {needed}. Set vocab_size to {needed} or more"
    )
  open_split = functools.partial(
    open_source,
    task,
    vocabulary=vocabulary,
    prompt_length=prompt_length,
    answer_length=answer_length,
    prompt_template=prompt_template,
    too_long=too_long,
    seed=seed,
  )
  source = open_split(
    "train", target_length=max_tokens if loop.needs_targets else None
  )
  heldout = open_split("heldout")
  delimiter_ids = tuple(
    i for text in step_delimiters for i in vocabulary.encode(text)
  )
  sampling = Sampling(
    max_tokens=max_tokens,
    end_id=vocabulary.eos_id,
    pad_id=vocabulary.pad_id,
    temperature=temperature,
    top_k=top_k,
    top_p=top_p,
    min_p=min_p,
    slots=slots,
    unroll_layers=models.unroll_sampling(platform, unroll_sampling),
    step_delimiters=delimiter_ids,
    max_steps=max_steps,
    rules=sampling_rules,
  )
  setup = Setup(
    model,
    vocabulary,
    source,
    sampling,
    total_steps,
    answer_delimiter,
    reference=None,
    mesh=devices,
    rules=rules,
  )
  recipe = loop.recipe(setup)  # contradictions are found before anything starts
  if profile_steps:
    parse_steps(profile_steps, total_steps)
  progress = Progress(enabled=hosts.main)
  sharding.check_rows(loop.num_prompts, "NUM_PROMPTS", devices, rules)
  if dry_run:
    progress.print_plan(_plan(loop, setup, heldout, evaluation))
    return {}

  check_same_run(config_text, source, heldout)
  key = jax.random.key(seed)
  params_key, run_key, eval_key = jax.random.split(key, 3)
  place = sharding.placement(
    abstract_state(recipe), model, recipe.optimizer, devices, rules
  )

  def first_params() -> Params:
    """Drawn or restored straight into their shards."""
    if initial_params is None:
      draw = place.jit(
        functools.partial(models.init, model), out_shardings=place.params
      )
      return draw(exchange.put(params_key, place.whole))
    return models.initial_params(
      initial_params, model, shardings=place.params, key=params_key
    )

  # Before anything is written; a run that goes on has no use for them but as
  # its reference. With adapters that is the policy's own weights without them.
  keeps_reference = loop.use_reference and model.lora is None
  params = first_params() if keeps_reference or not resume else None
  if keeps_reference:
    setup = setup._replace(reference=params)

  folder = open_for_hosts(run_dir, resume=resume, checkpoint_dir=checkpoint_dir)
  # While the folder holds nothing yet: what doesn't fit in memory leaves none.
  running = loop.start(setup)
  if not resume:
    running.fit()
  checkpoints = Checkpoints(
    folder.checkpoints,
    keep=keep,
    keep_best=keep_best,
    best_metric="eval/accuracy",
    save_every=save_every,
  )
  if not resume and checkpoints.latest_step() is not None:
    raise ValueError(
      f"checkpoint_dir={checkpoint_dir!r} holds another run: give --resume to go"
      " on with it, or another checkpoint_dir"
    )
  events = folder.tensorboard if tensorboard else None
  metric_log = MetricLog(
    folder.metrics if hosts.main else None, tensorboard=events
  )
  sample_log = SampleLog(folder.samples if hosts.main else None)
  start, restored = 0, {}
  if checkpoints.latest_step() is None:
    if params is None:
      params = first_params()
    elif keeps_reference:
      params = jax.tree.map(jnp.copy, params)
    # Donated: the parameters become the state's.
    begin = place.jit(
      lambda params, key: init_state(recipe, key, params),
      donate_argnums=0,
      out_shardings=place.state,
    )
    state = begin(params, exchange.put(run_key, place.whole))
  else:
    like = sharding.abstract(abstract_state(recipe), place.state)
    state, host = checkpoints.restore(like)
    if host["fingerprint"] != source.fingerprint:
      raise ValueError(
        f"run_dir={run_dir!r} was trained on other examples or another seed"
        f" (fingerprint {host['fingerprint']}, now {source.fingerprint}): give"
        " the same task settings and data files, or another run_dir"
      )
    source.seek(host["position"], host.get("part_draws"))
    start = int(state.step)
    restored = host.get("loop", {})
  metric_log.truncate_after(start if start else -1)
  sample_log.truncate_after(start if start else -1)
  if hosts.main:
    folder.config_given.write_text(config_text, encoding="utf-8")
    folder.write_about(
      title=folder.path.name,
      status="running",
      total_steps=total_steps,
      seeds=[seed],
      device=devices_text(devices),
      hosts=hosts.count,
      chain=loop.text(),
    )
    hosts.on_failure(lambda why: _finish(folder, progress, f"failed: {why}"))
  if source.dropped or heldout.dropped:
    progress.message(
      f"examples left out: train {source.dropped}, held-out {heldout.dropped}"
    )

  running.restore(restored)
  judge = eval_verifier.build(vocabulary)
  evaluate = Evaluator(
    evaluation,
    model=model,
    sampling=sampling,
    source=heldout,
    vocabulary=vocabulary,
    verifier=judge,
    on_device=eval_verifier.on_device,
    mesh=devices,
    rules=rules,
  )
  latest: dict[str, float] = {}
  watch = CompileWatch()
  profile = profile_of(
    folder.profile,
    profile_steps if hosts.main else "",
    (start, total_steps),
    recipe,
    prompt_length=prompt_length,
    programs=running.programs,
    devices=list(devices.devices.flat),
    say=progress.message,
  )
  books = Books(metric_log, progress, profile, max_missing=max_missing)

  def evaluated(state: TrainState, step: int) -> dict[str, float]:
    begin = time.perf_counter()
    figures, rows = evaluate(state.params, jax.random.fold_in(eval_key, step))
    sample_log.write(step, rows)
    progress.print_samples(rows[:2], title=f"held-out, after {step} steps")
    return figures | {"time/eval_s": time.perf_counter() - begin}

  def shown(state: TrainState, step: int, rows: Rows) -> dict[str, float]:
    nonlocal latest
    sample_log.write(step, rows[: evaluation.show])
    if rows:
      progress.print_samples(rows[:2], title=f"training, step {step}")
    latest = evaluated(state, step)
    return latest

  def host_data() -> dict[str, Any]:
    return {
      "position": source.position,
      "part_draws": source.part_draws,
      "fingerprint": source.fingerprint,
      "loop": running.host_state(),
    }

  status = "failed: interrupted"
  try:
    watch.start()
    progress.start(total_steps, start)
    if start == 0:
      latest = evaluated(state, 0)
      metric_log.write(0, latest)
      progress.update(0, latest)
    for step in range(start + 1, total_steps + 1):
      hosts.at(f"step {step}")
      due = step % evaluation.every == 0 or step == total_steps
      saves = checkpoints.due(step) or step == total_steps
      watch.take()  # what evaluation and checkpoints compiled
      with profile.step(step):
        state, outcome = running.dispatch(state, step=step - 1, drain=saves)
      compiled = watch.take()
      books.add(step, outcome, compiled.metrics())
      if compiled.names and step > start + 1:
        progress.message(
          f"step {step} compiled anew: {compiled.text(names=True)}"
        )
      # While the device is at this step, the one before is written down.
      problem = books.settle(
        keep=0 if due or saves or profile.borders(step) else 1,
        evaluate=functools.partial(shown, state) if due else None,
      )
      if saves or problem:
        checkpoints.save(step, state, host_data(), latest, force=True)
      if problem:
        raise TrainingStopped(
          f"{problem} (saved: the state after {step} steps)"
        )
      if hosts.main and step == start + 1:
        folder.write_about(compiled=f"first step: {compiled.text()}")
        if operative_config is not None:
          text = operative_config()
          folder.config_operative.write_text(text, encoding="utf-8")
    if (page := running.credit_page(state)) and hosts.main:
      folder.credit.write_text(page, encoding="utf-8")
    status = "finished"
  except Exception as error:
    status = f"failed: {error}"
    # Before anything below waits for hosts that will not come.
    hosts.post(error)
    raise
  finally:
    if not hosts.several:  # else some may wait for hosts that will not come
      books.close()
    progress.close()
    profile.close()
    watch.close()
    running.close()
    if hasattr(judge, "close"):
      judge.close()
    checkpoints.close()
    metric_log.close()
    sample_log.close()
    if hosts.main:
      _finish(folder, progress, status)
  progress.message(f"compiled: {watch.total().text()}")
  progress.message(f"report: {folder.report}")
  return latest


def _finish(folder: RunFolder, progress: Progress, status: str) -> None:
  folder.write_about(status=status)
  try:
    write_report(folder)
  except Exception as error:  # the run's own error must not be hidden by this
    progress.message(f"no report: {error}")


def _shares(loop, setup: Setup, recipe: Recipe) -> dict[str, str]:
  """Returns what each device of the mesh holds, for the plan."""
  mesh = make_mesh(ONE_DEVICE) if setup.mesh is None else setup.mesh
  found = shards.totals(
    setup.model,
    mesh,
    rules=setup.rules,
    sampling_rules=setup.sampling.rules,
    optimizer=recipe.optimizer,
    use_reference=loop.use_reference,
    precision=recipe.sampling.precision,
  )
  rows = shards.param_rows(setup.model, mesh, setup.rules)
  pieces = recipe.updates_per_batch * recipe.micro_batches
  ways = sharding.ways("batch", mesh, setup.rules)
  piece = recipe.num_prompts // pieces
  prompts = f"{piece / ways:g} of {piece}"
  if recipe.even_groups and piece % ways:
    prompts = (
      f"{piece} don't divide over {ways}: each device computes more than its"
      " share; raise NUM_PROMPTS or lower micro_batches"
    )
  return {
    "devices": devices_text(mesh),
    "table": shards.summary(rows),
    **{k: f"{v / 2**20:,.1f} MiB" for k, v in found.items()},
    "prompts of a micro-batch": prompts,
  }


def _plan(
  loop, setup: Setup, heldout, evaluation: Evaluation
) -> dict[str, Any]:
  """Returns the sections that `--dry_run` prints."""
  model = setup.model
  count = models.num_params(model)
  recipe = loop.recipe(setup)
  trained = models.trained(models.abstract_params(model), model)
  opt_state = jax.eval_shape(recipe.optimizer.init, trained)
  opt_bytes = sum(
    math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(opt_state)
  )
  B = recipe.num_prompts * recipe.group_size
  per_token = recipe.sampling.precision.cache_bytes(model)
  S = setup.source.next_batch(setup.source.unit).prompts.tokens.shape[1]
  setup.source.seek(0)
  cache = per_token * (B * setup.sampling.max_tokens + recipe.num_prompts * S)
  num_trained = sum(x.size for x in jax.tree.leaves(trained))
  copies = 1 + (loop.use_reference and model.lora is None)
  per_update = B // recipe.updates_per_batch // recipe.micro_batches
  logits = 4 * per_update * setup.sampling.max_tokens * model.vocab_size

  def mb(n):
    return f"{n / 2**20:,.1f} MiB"

  return {
    "Run": {
      "steps": setup.total_steps,
      "evaluation": f"every {evaluation.every} steps on"
      f" {evaluation.max_prompts or heldout.num_examples} held-out prompts",
      "training prompts": f"{setup.source.num_examples:,}"
      f" (left out: {setup.source.dropped or 'none'})",
      "attention": model.attention,
      "held-out prompts": f"{heldout.num_examples:,}"
      f" (left out: {heldout.dropped or 'none'})",
    },
    "Step": loop.plan(setup),
    "Model": {
      "parameters": f"{count:,}, of which {num_trained:,} are trained",
      "shape": f"{model.num_layers} layers, width {model.embed_dim},"
      f" {model.num_heads} heads ({model.num_kv_heads} key/value),"
      f" vocabulary {model.vocab_size}",
    },
    "Memory (arrays that last or peak; activations come on top)": {
      "parameters": f"{mb(4 * count)} x {copies}",
      "gradients": mb(4 * num_trained),
      "optimizer state": mb(opt_bytes),
      "key-value cache": mb(cache),
      "logits of a micro-batch": f"{mb(logits)}, in chunks of at most"
      f" {mb(4 << 25)}",
    },
    "Mesh (each device holds)": _shares(loop, setup, recipe),
    "Scoring chain": loop.text(),
    "Settings": json.dumps(
      {"sampling": repr(setup.sampling), "devices": devices_text(setup.mesh)},
      indent=2,
    ),
  }
