"""Installs rlvr. Tested versions are in requirements.lock."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
  r'__version__ = "([^"]+)"', (ROOT / "rlvr" / "__init__.py").read_text()
).group(1)

setuptools.setup(
  name="rlvr",
  version=VERSION,
  description=(
    "Reinforcement learning with verifiable rewards in JAX: rewards as a chain"
    " of pure functions inside the jitted step"
  ),
  long_description=(ROOT / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  packages=setuptools.find_packages(include=["rlvr", "rlvr.*"]),
  python_requires=">=3.11",
  install_requires=[
    # Models, optimizers, checkpoints.
    "jax>=0.10,<0.11",
    "flax>=0.12,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "numpy>=2.0",
    # Data: seqio tasks on TensorFlow, imported late.
    "seqio>=0.0.20,<0.1",
    "tensorflow>=2.21,<2.22",
    "tensorflow-text>=2.21,<2.22",
    "tensorflow-datasets>=4.9.10,<5",
    "sentencepiece>=0.2.1",
    "tokenizers>=0.21",
    "safetensors>=0.5",
    "jinja2>=3.1",
    "etils>=1.12",
    # Configuration.
    "gin-config>=0.5,<0.6",
    # Verifiers.
    "math-verify>=0.9,<0.10",
    "sqlglot>=30.0",
    "langdetect>=1.0.9",
    # What the user sees.
    "clu>=0.0.12",
    "tensorboard>=2.18",
    "rich>=14",
    "matplotlib>=3.9",
    "scipy>=1.14",
  ],
  extras_require={
    "tpu": ["jax[tpu]>=0.10,<0.11", "libtpu>=0.0.40"],
    # Reads and dequantises GGUF files.
    "gguf": ["gguf>=0.17"],
    # Its pycosat is built from source: needs a C compiler.
    "gym": ["reasoning-gym>=0.1.25,<0.2"],
    "dev": [
      "pytest>=8",
      "pytest-xdist>=3.6",
      "ruff>=0.12",
      "mypy>=1.15",
      "psutil>=6",
    ],
  },
)
