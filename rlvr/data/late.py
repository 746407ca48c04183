"""Imports that are slow and noisy, made once, late and quietly.

TensorFlow takes seconds to import and prints to the terminal while it does; it
is wanted here for seqio's input pipelines on the host and for nothing else.
Every module of `rlvr.data` gets it from these functions, inside functions.
"""

import contextlib
import functools
import os
import warnings
from types import ModuleType


@functools.cache
def import_tensorflow() -> ModuleType:
  """Returns `tensorflow`, imported quietly and kept off the accelerators."""
  # TensorFlow's C++ reads these when it is loaded; what the user set stays, but
  # for the 1 that importing JAX sets. Below 3 a machine without a GPU is told so
  # as an error; real errors come as Python exceptions too. (A few lines are
  # printed before the level is read.)
  if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
  with warnings.catch_warnings():
    # Generated bindings (SWIG, protobuf) and old NumPy idioms inside it warn
    # about themselves; nobody here can act on that.
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.simplefilter("ignore", FutureWarning)
    import tensorflow as tf
  # A GPU is the policy's: TensorFlow would reserve all of its memory. Where
  # somebody else has initialised TensorFlow's devices, it is theirs to say.
  with contextlib.suppress(RuntimeError):
    tf.config.set_visible_devices([], "GPU")
  return tf


@functools.cache
def import_seqio() -> ModuleType:
  """Returns `seqio`, imported quietly."""
  import_tensorflow()
  with warnings.catch_warnings():
    # As above: tensorflow_text's and sentencepiece's generated bindings.
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.simplefilter("ignore", FutureWarning)
    import seqio
  return seqio
