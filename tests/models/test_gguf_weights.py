"""GGUF files to parameters: names, reordered rows, quantised blocks, refusals."""

import dataclasses

import jax
import numpy as np
import pytest

from rlvr import data, models, sharding
from rlvr.meshes import MeshShape, make_mesh
from rlvr.models import hf_names
from tests import tiny
from tests.compare import must_fail
from tests.models import folders
from tests.models.test_families import case, config_of, params_of

gguf = pytest.importorskip("gguf", reason="pip install 'rlvr[gguf]'")
from tests.models import gguf_models  # noqa: E402  it imports gguf


def fields_of(name):
  return case(name)[1]["config"]


def tensors_of(config, params):
  """Returns parameters by their names in a Hugging Face folder."""
  found = {}
  for name, tensor in hf_names.hf_tensors(config).items():
    leaf = params
    for key in tensor.path:
      leaf = leaf[key]
    leaf = leaf if tensor.layer is None else leaf[tensor.layer]
    found[name] = tensor.to_hf(np.asarray(leaf))
  return found


@pytest.mark.parity
def test_llama_gives_the_logits_of_transformers(tmp_path):
  name = "smollm2"
  assert fields_of(name)["num_attention_heads"] == 3

  def check(path, **options):
    gguf_models.write(path, fields_of(name), folders.weights(name), **options)
    config, params = models.load_gguf(path)
    assert config == config_of(name)
    folders.check_golden(name, config, params)

  check(tmp_path / "model.gguf")
  # Rows in the order of transformers are not what such a file holds.
  must_fail(check, tmp_path / "unpermuted.gguf", permute=False)


@pytest.mark.parity
def test_qwen3_gives_the_logits_of_transformers(tmp_path):
  fields = fields_of("qwen3")
  scaling = fields["rope_scaling"]
  assert scaling["rope_type"] == "linear"

  def more(writer):
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(scaling["factor"])

  def check(path, more):
    gguf_models.write(
      path, fields, folders.weights("qwen3"), arch="qwen3", more=more
    )
    config, params = models.load_gguf(path)
    folders.check_golden("qwen3", config, params)
    assert config == config_of("qwen3")

  check(tmp_path / "model.gguf", more)
  must_fail(check, tmp_path / "unscaled.gguf", lambda writer: None)


def test_qwen2_has_its_biases_and_its_order(tmp_path):
  # Without the golden checkpoint's YaRN, which such a file doesn't tell.
  fields = {**fields_of("qwen2"), "rope_scaling": None}
  path = gguf_models.write(
    tmp_path / "model.gguf", fields, folders.weights("qwen2"), arch="qwen2"
  )
  config, params = models.load_gguf(path)
  expected = dataclasses.replace(config_of("qwen2"), rope_scaling=None)
  assert config == expected and config.qkv_bias
  folders.same(params, params_of("qwen2"))
  assert np.abs(np.asarray(params["layers"]["key_bias"])).min() > 0


# Grouped heads, head sizes other than D/H.
GROUPED = tiny.config(
  embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=16, mlp_dim=64
)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
  params = tiny.params(GROUPED)
  path = gguf_models.write(
    tmp_path_factory.mktemp("gguf") / "model.gguf",
    hf_names.config_to_huggingface(GROUPED, "llama"),
    tensors_of(GROUPED, params),
  )
  return path, params


@pytest.mark.parametrize(
  "mesh", [MeshShape(fsdp=8), MeshShape(data=2, fsdp=2, tensor=2)], ids=str
)
def test_grouped_heads_come_whole_and_in_shards(grouped, mesh):
  path, expected = grouped
  config, params = models.load_gguf(path)
  assert config == dataclasses.replace(
    GROUPED, max_positions=config.max_positions
  )
  folders.same(params, expected)
  places = sharding.param_shardings(config, make_mesh(mesh, jax.devices()))
  placed = models.load_gguf(path, shardings=places)[1]
  folders.same(placed, expected)
  assert jax.tree.map(lambda x: x.sharding, placed) == places


def test_half_heads_are_cut_out_of_whole_ones(grouped):
  # A rule that splits the head's size: its reordered rows are read whole.
  path, expected = grouped
  mesh = make_mesh(MeshShape(tensor=8), jax.devices())
  places = sharding.param_shardings(GROUPED, mesh)
  split = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec(None, None, None, "tensor")
  )
  layers = {**places["layers"], "query": split, "key": split}
  placed = models.load_gguf(path, shardings={**places, "layers": layers})[1]
  folders.same(placed, expected)
  assert placed["layers"]["query"].sharding == split


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1"])
def test_blocks_are_dequantised_by_rows(kind, tmp_path):
  kind = gguf.GGMLQuantizationType[kind]
  params = tiny.params(GROUPED)
  tensors = tensors_of(GROUPED, params)
  path = gguf_models.write(
    tmp_path / "model.gguf",
    hf_names.config_to_huggingface(GROUPED, "llama"),
    tensors,
    kind=kind,
  )
  expected = {
    name: x
    if x.ndim == 1
    else gguf.dequantize(gguf.quantize(x, kind), kind).astype(np.float32)
    for name, x in tensors.items()
  }
  mesh = make_mesh(MeshShape(fsdp=2, tensor=2), jax.devices()[:4])
  for shardings in (None, sharding.param_shardings(GROUPED, mesh)):
    found = tensors_of(GROUPED, models.load_gguf(path, shardings=shardings)[1])
    for name, x in expected.items():
      np.testing.assert_array_equal(found[name], x, err_msg=name)
  # They are other numbers than those that were quantised.
  query = "model.layers.0.self_attn.q_proj.weight"
  must_fail(np.testing.assert_array_equal, found[query], tensors[query])


def test_the_vocabulary_comes_along(tmp_path):
  config = tiny.config(vocab_size=260)
  path = gguf_models.write(
    tmp_path / "model.gguf",
    hf_names.config_to_huggingface(config, "llama"),
    tensors_of(config, tiny.params(config)),
    vocabulary=True,
  )
  vocabulary = data.huggingface_vocabulary(str(path))
  assert (vocabulary.eos_id, vocabulary.pad_id) == (257, 259)
  assert vocabulary.encode("3+12<|end|>") == [51, 43, 256, 257]
  # It is written beside exported weights, and read the same.
  read, params = models.load_gguf(path)
  out = models.save_huggingface(
    tmp_path / "out", read, params, tokenizer_files_from=path
  )
  again = data.huggingface_vocabulary(str(out))
  assert (again.eos_id, again.pad_id) == (257, 259)
  assert again.encode("3+12<|end|>") == [51, 43, 256, 257]


def test_a_tensor_that_is_not_finite_is_named(tmp_path):
  fields, tensors = fields_of("smollm2"), folders.weights("smollm2")
  name = "model.layers.1.self_attn.q_proj.weight"
  path = tmp_path / "model.gguf"
  gguf_models.write(path, fields, tensors, arch="llama")
  models.load_gguf(path)  # the control
  tensors[name][3, 1] = np.inf
  gguf_models.write(path, fields, tensors, arch="llama")
  with pytest.raises(ValueError, match=rf"model.gguf: .*{name} holds inf"):
    models.load_gguf(path)


def test_what_is_not_supported_is_named(tmp_path):
  fields, tensors = fields_of("smollm2"), folders.weights("smollm2")

  def refused(match, *, arch="llama", change=None, more=lambda writer: None):
    path = tmp_path / "model.gguf"
    changed = tensors if change is None else change
    gguf_models.write(path, fields, changed, arch=arch, more=more)
    with pytest.raises(ValueError, match=match):
      models.load_gguf(path)

  refused(r"architecture 'gemma2' is not supported: .*'qwen2'", arch="gemma2")
  refused(r"experts", more=lambda w: w.add_expert_count(4))
  refused(
    r"scaled \('yarn'.*Hugging Face folder",
    more=lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN),
  )
  refused(
    r"rope_freqs",
    more=lambda w: w.add_tensor("rope_freqs.weight", np.ones(3, np.float32)),
  )
  refused(
    r"attention_bias=True",
    more=lambda w: w.add_tensor("blk.0.attn_q.bias", np.ones(18, np.float32)),
  )
  refused(
    r"attn_output\.bias is not supported",
    more=lambda w: w.add_tensor(
      "blk.1.attn_output.bias", np.ones(18, np.float32)
    ),
  )
  refused(
    r"1 of 3 files.*gguf-split",
    more=lambda w: w.add_uint16("split.count", 3),
  )
  norm = "model.layers.1.input_layernorm.weight"
  less = {k: v for k, v in tensors.items() if k != norm}
  refused(rf"missing: {norm}", change=less)
