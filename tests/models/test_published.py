"""The shipped sizes are the published ones: parameters counted, files built.

Counts are those that the models' pages on https://huggingface.co show for their
safetensors files. Where a file holds more than the text decoder, the source
says what was taken off.
"""

import pytest

import gin
from rlvr import models
from rlvr.models import hf_names
from tests import runs

FOLDER = runs.ROOT / "gin" / "models"
# Qwen3's small files hold the tied table twice: 751,632,384 and 2,031,739,904
# there, of which 151,936 · width is the copy. Gemma 3 4b: 4,300,079,472 with
# eyes; the text model's count is that of its GGUF file, which lacks the table's 64
# last rows.
COUNTS = {
  "qwen2_5_0_5b": 494_032_768,
  "qwen2_5_1_5b": 1_543_714_304,
  "qwen2_5_7b": 7_615_616_512,
  "qwen2_5_32b": 32_763_876_352,
  "qwen3_0_6b": 751_632_384 - 151_936 * 1024,
  "qwen3_1_7b": 2_031_739_904 - 151_936 * 2048,
  "qwen3_4b": 4_022_468_096,
  "qwen3_8b": 8_190_735_360,
  "qwen3_32b": 32_762_123_264,
  "llama3_2_1b": 1_235_814_400,
  "llama3_2_3b": 3_212_749_824,
  "llama3_1_8b": 8_030_261_248,
  "gemma2_2b": 2_614_341_888,
  "gemma2_9b": 9_241_705_984,
  "gemma3_1b": 999_885_952,
  "gemma3_4b": 3_880_099_328 + 64 * 2560,
  "smollm2_135m": 134_515_008,
  "smollm2_360m": 361_821_120,
  "smollm2_1_7b": 1_711_376_384,
}
FAMILIES = {
  "qwen2": "qwen2",
  "qwen3": "qwen3",
  "llama3": "llama",
  "gemma2": "gemma2",
  "gemma3": "gemma3_text",
  "smollm2": "llama",
}


def shipped(name):
  gin.clear_config()
  gin.parse_config_file(str(FOLDER / f"{name}.gin"))
  config = gin.get_configurable(models.ModelConfig)()
  gin.clear_config()
  return config


def test_every_shipped_model_is_counted():
  # No published sizes.
  own = {"tiny", "small", "from_huggingface", "lora"}
  assert {p.stem for p in FOLDER.glob("*.gin")} - own == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_as_many_as_published(name):
  config = shipped(name)
  assert models.num_params(config) == COUNTS[name]
  # And the model is one of its family.
  family = FAMILIES[name.split("_")[0]]
  fields = hf_names.config_to_huggingface(config, family)
  assert fields["num_hidden_layers"] == config.num_layers
