"""Families of published models: their `config.json` and `ModelConfig`.

Fields are those of Hugging Face `transformers`, in the form of its versions 4
(`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`). A field that changes
what the model computes is either taken over or refused, never skipped.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rlvr.models.config import ModelConfig, RopeScaling

_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_KINDS = {"full_attention": "global", "sliding_attention": "local"}
# What a checkpoint says nothing about.
_NOT_IN_FILES = (
  "value_head",
  "compute_dtype",
  "remat",
  "unroll_layers",
  "attention",
  "logits_at_once",
)
# Fields that must be absent or have one of these values, in every family.
_REFUSED: Mapping[str, tuple[Any, ...]] = {
  "attention_bias": (False, None),
  "mlp_bias": (False, None),
  "partial_rotary_factor": (1.0, None),
  "use_bidirectional_attention": (False, None),
  "quantization_config": (None,),
  "pretraining_tp": (1, None),
}
_YARN = ("beta_fast", "beta_slow", "attention_factor", "truncate")
_ROPE_FIELDS = {
  "default": (),
  "linear": (),
  "llama3": ("low_freq_factor", "high_freq_factor"),
  "yarn": _YARN,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """What sets a family apart from the others."""

  architecture: str  # in config.json's `architectures`
  defaults: Mapping[str, Any]  # fields that a config.json may leave out
  ours: Mapping[str, Any]  # ModelConfig fields that its class fixes
  activation: str = "hidden_act"  # the field's name
  windows: bool = False  # whether its class has sliding windows
  local_rope: bool = False  # whether local layers have a base of their own


_COMMON = {
  "hidden_act": "silu",
  "rms_norm_eps": 1e-6,
  "tie_word_embeddings": False,
  "rope_theta": 10_000.0,
}
_QWEN = _COMMON | {
  "vocab_size": 151_936,
  "max_position_embeddings": 32_768,
  "use_sliding_window": False,
  "sliding_window": 4096,
  "max_window_layers": 28,
}
_GEMMA = _COMMON | {
  "hidden_activation": "gelu_pytorch_tanh",
  "tie_word_embeddings": True,
  "num_attention_heads": 8,
  "num_key_value_heads": 4,
  "head_dim": 256,
  "query_pre_attn_scalar": 256,
  "sliding_window": 4096,
}
_GEMMA_OURS = {"norm_offset": 1.0, "post_norms": True, "scale_embeddings": True}

FAMILIES: Mapping[str, Family] = {
  "llama": Family(
    architecture="LlamaForCausalLM",
    defaults=_COMMON | {"vocab_size": 32_000, "max_position_embeddings": 2048},
    ours={},
  ),
  "qwen2": Family(
    architecture="Qwen2ForCausalLM",
    defaults=_QWEN,
    ours={"qkv_bias": True},
    windows=True,
  ),
  "qwen3": Family(
    architecture="Qwen3ForCausalLM",
    defaults=_QWEN | {"head_dim": 128},
    ours={"qk_norm": True},
    windows=True,
  ),
  "gemma2": Family(
    architecture="Gemma2ForCausalLM",
    defaults=_GEMMA
    | {
      "vocab_size": 256_000,
      "max_position_embeddings": 8192,
      "sliding_window_pattern": 2,
      "final_logit_softcapping": 30.0,
      "attn_logit_softcapping": 50.0,
    },
    ours=_GEMMA_OURS,
    activation="hidden_activation",
    windows=True,
  ),
  "gemma3_text": Family(
    architecture="Gemma3ForCausalLM",
    defaults=_GEMMA
    | {
      "vocab_size": 262_208,
      "max_position_embeddings": 131_072,
      "sliding_window_pattern": 6,
      "rope_theta": 1_000_000.0,
      "rope_local_base_freq": 10_000.0,
    },
    ours=_GEMMA_OURS | {"qk_norm": True},
    activation="hidden_activation",
    windows=True,
    local_rope=True,
  ),
}


def config_from_huggingface(fields: Mapping[str, Any]) -> ModelConfig:
  """Returns the model's shape from the fields of a `config.json`.

  Of a Gemma 3 model that also sees, the text model is taken.

  Args:
    fields: the parsed file.

  Raises:
    ValueError: an architecture or a field that the decoder doesn't have, by
      name.
  """
  kind = str(fields.get("model_type"))
  if kind == "gemma3":
    # The inner config may leave out its own type.
    fields = {"model_type": "gemma3_text", **fields.get("text_config", {})}
    kind = str(fields["model_type"])
  if kind not in FAMILIES:
    raise ValueError(
      f"model_type={kind!r} (architectures {fields.get('architectures')}) is"
      f" not supported: there are {sorted((*FAMILIES, 'gemma3'))}"
    )
  family = FAMILIES[kind]
  for name, accepted in _REFUSED.items():
    if name in fields and fields[name] not in accepted:
      raise ValueError(
        f"config.json of a {kind} model: {name}={fields[name]!r} is not"
        f" supported, only {accepted[0]!r}"
      )
  given = {**family.defaults, **fields}

  def need(name):
    if given.get(name) is None:
      raise ValueError(f"config.json of a {kind} model: {name!r} is missing")
    return given[name]

  activation = need(family.activation)
  if activation not in _ACTIVATIONS:
    raise ValueError(
      f"config.json: {family.activation}={activation!r} is not supported:"
      f" there are {sorted(_ACTIVATIONS)}"
    )
  heads = need("num_attention_heads")
  kinds = _layer_kinds(family, given, need("num_hidden_layers"))
  theta, scaling = _rope(given, "full_attention", given["rope_theta"])
  local_theta = None
  if family.local_rope:
    local_theta, local_scaling = _rope(
      given, "sliding_attention", given["rope_local_base_freq"]
    )
    if local_scaling is not None:
      raise ValueError(
        "config.json: rope_parameters.sliding_attention has rope_type"
        f" {local_scaling.kind!r}: only 'default' is supported there"
      )
  scalar = given.get("query_pre_attn_scalar")
  return ModelConfig(
    vocab_size=need("vocab_size"),
    embed_dim=need("hidden_size"),
    num_layers=need("num_hidden_layers"),
    num_heads=heads,
    num_kv_heads=given.get("num_key_value_heads") or heads,
    head_dim=given.get("head_dim") or need("hidden_size") // heads,
    mlp_dim=need("intermediate_size"),
    rope_theta=theta,
    norm_epsilon=need("rms_norm_eps"),
    tie_embeddings=need("tie_word_embeddings"),
    activation=_ACTIVATIONS[activation],
    attention_softcap=given.get("attn_logit_softcapping"),
    final_softcap=given.get("final_logit_softcapping"),
    query_scale=None if scalar is None else scalar**-0.5,
    sliding_window=given["sliding_window"] if "local" in kinds else None,
    layer_pattern=_shortest_pattern(kinds),
    local_rope_theta=local_theta,
    rope_scaling=scaling,
    max_positions=need("max_position_embeddings"),
    **family.ours,
  )


def config_to_huggingface(config: ModelConfig, family: str) -> dict[str, Any]:
  """Returns the fields of a `config.json` for the model.

  Versions 4.53 and later of `transformers` read it, 5 included.

  Args:
    config: the model's shape.
    family: a key of `FAMILIES`.

  Raises:
    ValueError: the family is unknown, or its class can't be this model; the
      error names the ModelConfig fields.
  """
  if family not in FAMILIES:
    raise ValueError(f"family={family!r}: give one of {sorted(FAMILIES)}")
  c, spec = config, FAMILIES[family]
  activation = {v: k for k, v in _ACTIVATIONS.items()}[c.activation]
  scaling = c.rope_scaling
  longest = c.max_positions or spec.defaults["max_position_embeddings"]
  if c.max_positions is None and scaling and scaling.original_max_positions:
    longest = int(scaling.factor * scaling.original_max_positions)
  fields = {
    "architectures": [spec.architecture],
    "model_type": family,
    "vocab_size": c.vocab_size,
    "hidden_size": c.embed_dim,
    "intermediate_size": c.mlp_dim,
    "num_hidden_layers": c.num_layers,
    "num_attention_heads": c.num_heads,
    "num_key_value_heads": c.num_kv_heads,
    "head_dim": c.head_dim,
    spec.activation: activation,
    "max_position_embeddings": longest,
    "rms_norm_eps": c.norm_epsilon,
    "rope_theta": c.rope_theta,
    "rope_scaling": None if scaling is None else _scaling_fields(scaling),
    "tie_word_embeddings": c.tie_embeddings,
  }
  if spec.windows:
    names = {v: k for k, v in _KINDS.items()}
    kinds = c.layer_kinds
    fields["layer_types"] = [names[kind] for kind in kinds]
    fields["sliding_window"] = c.sliding_window
    if "use_sliding_window" in spec.defaults:
      fields["use_sliding_window"] = "local" in kinds
      fields["max_window_layers"] = (
        kinds.index("local") if "local" in kinds else c.num_layers
      )
    elif c.sliding_window is None:
      fields["sliding_window"] = spec.defaults["sliding_window"]
  if spec.local_rope:
    fields["rope_local_base_freq"] = c.local_rope_theta or c.rope_theta
  if "query_pre_attn_scalar" in spec.defaults:
    scalar = c.head_dim if c.query_scale is None else c.query_scale**-2
    # An integer there; rounding undoes the power's last bit.
    fields["query_pre_attn_scalar"] = round(scalar)
    fields["attn_logit_softcapping"] = c.attention_softcap
    fields["final_logit_softcapping"] = c.final_softcap
  _check_same_model(c, config_from_huggingface(fields), family)
  return fields


def family_of(config: ModelConfig) -> str:
  """Returns the first family whose class can be this model.

  Args:
    config: the model's shape.

  Raises:
    ValueError: none can.
  """
  reasons = []
  for family in FAMILIES:
    try:
      config_to_huggingface(config, family)
    except ValueError as error:
      reasons.append(str(error))
    else:
      return family
  raise ValueError("no family is this model:\n" + "\n".join(reasons))


def _check_same_model(
  config: ModelConfig, read: ModelConfig, family: str
) -> None:
  """Raises ValueError with the fields that the family can't express."""

  def plain(c):
    scale = c.head_dim**-0.5 if c.query_scale is None else c.query_scale
    same = {
      **dataclasses.asdict(c),
      "layer_pattern": c.layer_kinds,
      "query_scale": round(scale, 9),
      "sliding_window": c.sliding_window if "local" in c.layer_kinds else None,
    }
    if "local" not in c.layer_kinds or c.local_rope_theta is None:
      same["local_rope_theta"] = None
    for name in (*_NOT_IN_FILES, "max_positions"):
      del same[name]
    return same

  ours, theirs = plain(config), plain(read)
  if config.local_rope_theta is None and config.rope_scaling is None:
    # Without a base of their own the local layers have the global ones'.
    ours["local_rope_theta"] = theirs["local_rope_theta"]
  differing = [
    f"{name}={ours[name]!r} (there {theirs[name]!r})"
    for name in ours
    if ours[name] != theirs[name]
  ]
  if differing:
    raise ValueError(
      f"a {family} model can't be this one. ModelConfig fields that differ: "
      + ", ".join(differing)
    )


def _layer_kinds(
  family: Family, given: Mapping[str, Any], num_layers: int
) -> tuple[str, ...]:
  if not family.windows:
    if given.get("sliding_window") is not None:
      raise ValueError(
        f"config.json: sliding_window={given['sliding_window']} in a"
        f" {family.architecture} is not supported"
      )
    return ("global",) * num_layers
  types = given.get("layer_types")
  if given.get("use_sliding_window") is False:
    return ("global",) * num_layers
  if types is not None:
    if len(types) != num_layers or set(types) - set(_KINDS):
      raise ValueError(
        f"config.json: layer_types={types} must name {num_layers} of"
        f" {sorted(_KINDS)}"
      )
    return tuple(_KINDS[t] for t in types)
  if "use_sliding_window" in given:
    first = given["max_window_layers"]
    return tuple("local" if i >= first else "global" for i in range(num_layers))
  every = given["sliding_window_pattern"]
  return tuple(
    "local" if (i + 1) % every else "global" for i in range(num_layers)
  )


def _shortest_pattern(kinds: tuple[str, ...]) -> tuple[str, ...]:
  """Returns the shortest start of `kinds` that repeats to all of it."""
  return next(
    kinds[:n]
    for n in range(1, len(kinds) + 1)
    if all(kind == kinds[i % n] for i, kind in enumerate(kinds))
  )


def _rope(
  given: Mapping[str, Any], layer_type: str, default_theta: float
) -> tuple[float, RopeScaling | None]:
  """Returns the base and the scaling of one type of layers."""
  new = given.get("rope_parameters")
  if new is not None:
    # One dict, or one for each type of layers.
    fields = dict(new.get(layer_type) or {}) if set(new) & set(_KINDS) else new
  elif layer_type == "full_attention":
    fields = given.get("rope_scaling") or {}
  else:
    fields = {}
  fields = dict(fields)
  theta = fields.pop("rope_theta", default_theta)
  kind = fields.pop("rope_type", None) or fields.pop("type", "default")
  fields.pop("type", None)
  if kind not in _ROPE_FIELDS:
    raise ValueError(
      f"config.json: rope_type={kind!r} is not supported: there are"
      f" {sorted(_ROPE_FIELDS)}"
    )
  if kind == "default":
    fields.pop("factor", None)
  known = {
    name: fields.pop(name)
    for name in _ROPE_FIELDS[kind]
    if fields.get(name) is not None
  }
  factor = fields.pop("factor", None)
  original = fields.pop("original_max_position_embeddings", None)
  if fields.pop("partial_rotary_factor", 1.0) not in (1.0, None):
    raise ValueError(
      "config.json: partial_rotary_factor of rope_parameters is not supported,"
      " only 1.0"
    )
  if left := {k: v for k, v in fields.items() if v is not None}:
    raise ValueError(
      f"config.json: fields {left} of a {kind!r} rope are not supported"
    )
  if kind == "default":
    return float(theta), None
  if factor is None:
    raise ValueError(f"config.json: a {kind!r} rope needs 'factor'")
  if kind == "linear":
    original = None
  elif original is None:
    original = given["max_position_embeddings"]
  return float(theta), RopeScaling(
    kind=kind, factor=factor, original_max_positions=original, **known
  )


def _scaling_fields(scaling: RopeScaling) -> dict[str, Any]:
  fields = {"rope_type": scaling.kind, "factor": scaling.factor}
  if scaling.original_max_positions is not None:
    fields["original_max_position_embeddings"] = scaling.original_max_positions
  for name in _ROPE_FIELDS[scaling.kind]:
    if getattr(scaling, name) is not None:
      fields[name] = getattr(scaling, name)
  return fields
