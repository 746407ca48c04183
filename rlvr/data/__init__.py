"""Data as seqio tasks and mixtures, and batches of prompts from them.

Importing this imports no TensorFlow; opening a source or making a vocabulary
does (some seconds, once).
"""

from rlvr.data.arithmetic import arithmetic_examples
from rlvr.data.chat_templates import chat_prompt
from rlvr.data.code_tasks import humaneval_task, mbpp_task
from rlvr.data.examples import Example, TaskSpec
from rlvr.data.math_tasks import aqua_task, math_task, svamp_task
from rlvr.data.providers import register, seqio_provider
from rlvr.data.sources import Batch, PromptSource, open_source
from rlvr.data.tasks import (
  arithmetic_task,
  gsm8k_task,
  mixture_task,
  reasoning_gym_task,
)
from rlvr.data.vocabularies import (
  byte_vocabulary,
  huggingface_vocabulary,
  required_vocab_size,
  sentencepiece_vocabulary,
)

__all__ = [
  "Batch",
  "Example",
  "PromptSource",
  "TaskSpec",
  "aqua_task",
  "arithmetic_examples",
  "arithmetic_task",
  "byte_vocabulary",
  "chat_prompt",
  "gsm8k_task",
  "huggingface_vocabulary",
  "humaneval_task",
  "math_task",
  "mbpp_task",
  "mixture_task",
  "open_source",
  "reasoning_gym_task",
  "register",
  "required_vocab_size",
  "sentencepiece_vocabulary",
  "seqio_provider",
  "svamp_task",
]
