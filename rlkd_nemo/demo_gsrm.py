"""The demo of a learned structure reward: a tiny GSRM is trained, served by a real vLLM, and used by a whole RLKD run.

The student writes free text, which only the GSRM reads; the run's rewards are then compared with those by rule. This
module starts programs and waits for them: the work is done by the same examples that users run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from rlkd_nemo import tasks
from rlkd_nemo.config.load import load, to_yaml
from rlkd_nemo.config.schema import Config
from rlkd_nemo.errors import ConfigError, GateError
from rlkd_nemo.gsrm import dataset
from rlkd_nemo.gsrm.prompting import Prompts
from rlkd_nemo.gsrm.vocabulary import write_tokenizer
from rlkd_nemo.launch.children import Children
from rlkd_nemo.lifecycle.signals import stop_requested
from rlkd_nemo.report import audit
from rlkd_nemo.report.files import dumps, write_atomically
from rlkd_nemo.report.page import write_report
from rlkd_nemo.report.progress import Progress
from rlkd_nemo.report.summary import read_summary, write_summary
from rlkd_nemo.rewards.agreement import agreement
from rlkd_nemo.tasks.expression_labels import texts
from rlkd_nemo.tasks.expressions import Expressions

log = logging.getLogger(__name__)
_CONFIG = "demo_gsrm_run"  # the run's config beside its results, which all programs read
_MODEL = "gsrm"
VLLM_PYTHON = "RLKD_VLLM_PYTHON"
# No network, no usage statistics; vLLM's own environment, not ours.
_VLLM_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
}  # fmt: skip


def run(cfg: Config, examples: Path) -> dict[str, Any]:
    """All of it, in `exp_manager.exp_dir`. Finished parts of an earlier, interrupted run are used again.

    Args: examples: the folder with the programs.
    Returns: the summary, as in summary.json.
    Raises: ConfigError without a vLLM; RlkdError when a program fails; GateError when a figure of `gsrm_demo` is not met.
    """
    python = _vllm_python(cfg)
    began = time.monotonic()
    directory = Path(cfg.exp_manager.exp_dir).resolve()
    rows = directory / "rows"
    prompts = str(resources.files("rlkd_nemo.gsrm") / "prompts_short")
    seconds: dict[str, float] = {}
    log.info("[1/6] labelled rows and a vocabulary in %s", rows)
    fingerprint = _write_rows(cfg, rows, prompts)
    with Children(stop_requested) as children:
        log.info("[2/6] training the GSRM")
        with _timed(seconds, "train_gsrm"):
            model = _train(cfg, children, examples, directory, prompts, fingerprint)
        log.info("[3/6] serving it by vLLM (usually 1 to 2 minutes; log in %s)", directory / "vllm.log")
        with _timed(seconds, "start_vllm"):
            endpoint = _serve_model(cfg, children, python, model, directory)
        served = [
            f"gsrm.llm.decomposer.urls=[{endpoint}]",
            f"gsrm.llm.decomposer.model={_MODEL}",
            f"gsrm.llm.prompts={prompts}",
            f"gsrm.reference_store={directory / 'references'}",
        ]
        (directory / f"{_CONFIG}.yaml").write_text(to_yaml(cfg))
        config = ["--config-dir", str(directory), "--config-name", _CONFIG]
        log.info("[4/6] its figures on held-out texts")
        measured = [
            f"gsrm.evaluation.data={rows / 'held_out.jsonl'}",
            f"exp_manager.exp_dir={directory / 'evaluation'}",
        ]
        with _timed(seconds, "evaluate_gsrm"):
            children.run(
                "evaluate_gsrm", [sys.executable, str(examples / "evaluate_gsrm.py"), *config, *served, *measured]
            )
        figures = json.loads((directory / "evaluation" / "gsrm_evaluation.json").read_text())["decompositions"]["all"]
        log.info("[5/6] the server of structure rewards, and RLKD through it")
        with _timed(seconds, "rlkd"):
            url = _serve_rewards(children, examples, config, served, directory)
            children.run(
                "quickstart",
                [sys.executable, str(examples / "quickstart.py"), *config, *served, f"gsrm.service.urls=[{url}]"],
            )
    log.info("[6/6] rewards of the run, compared with those by rule")
    return _finish(cfg, directory, figures, seconds, time.monotonic() - began)


def _vllm_python(cfg: Config) -> str:
    python = cfg.gsrm_demo.vllm_python or os.environ.get(VLLM_PYTHON)
    if not python:
        raise ConfigError(
            f"gsrm_demo.vllm_python is not set, and neither is the environment variable {VLLM_PYTHON}; wanted the Python "
            "of an environment with vLLM (make demo-gsrm makes one)"
        )
    found = shutil.which(python)
    if found is None:
        raise ConfigError(
            f"gsrm_demo.vllm_python={python} is no program; wanted the Python of an environment with vLLM"
        )
    return os.path.abspath(found)


def _write_rows(cfg: Config, folder: Path, prompts_directory: str) -> str:
    """Rows to train on, rows held out (other problems), and the vocabulary of the former. Returns: their fingerprint."""
    demo, task = cfg.gsrm_demo, tasks.build(cfg.task)
    if not isinstance(task, Expressions) or not task.prose:
        raise ConfigError(
            "the demo's GSRM reads expressions in free text; wanted task=expressions and task.style=prose"
        )
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"train": (demo.num_rows, demo.altered, demo.cut), "test": (demo.held_out_rows, 0.0, 0.0)}
    made: dict[str, list[dataset.DecompositionRow]] = {}
    for split, (number, altered, cut) in parts.items():
        made[split] = []
        given = texts(task, split, cfg.data.shuffle_seed, cfg.data.train_difficulty, number, altered, cut)
        with Progress(number, f"rows ({split})") as progress:
            for place, (problem, text, steps) in enumerate(given):
                name = f"{split}-{place}"
                made[split].append(
                    dataset.DecompositionRow(name, "math", problem.prompt, text, tuple(steps), "by construction")
                )
                progress.update(place + 1)
    train = "".join(map(dataset.line, made["train"]))
    write_atomically(folder / "train.jsonl", train)
    write_atomically(folder / "held_out.jsonl", "".join(map(dataset.line, made["test"])))
    prompts = Prompts(prompts_directory)
    talks = [dataset.conversation(row, prompts, "json") for row in made["train"][:2000]]
    write_tokenizer(folder / "tokenizer", [turn["content"] for talk in talks for turn in talk.messages])
    return hashlib.sha256(train.encode()).hexdigest()[:16]


def _train(cfg: Config, children: Children, examples: Path, directory: Path, prompts: str, fingerprint: str) -> Path:
    """The exported model; the one that is there already, if it was trained on these rows in this way."""
    run_dir, rows, training = directory / "gsrm", directory / "rows", list(cfg.gsrm_demo.training)
    export, stamp = run_dir / "hf", run_dir / "made_of.json"
    resolved = to_yaml(load(cfg.gsrm_demo.train_config, training))
    made_of = {"rows": fingerprint, "config": hashlib.sha256(resolved.encode()).hexdigest()[:16]}
    if export.is_dir() and stamp.is_file() and json.loads(stamp.read_text()) == made_of:
        log.info("the GSRM is there already: %s", export)
        return export
    shutil.rmtree(export, ignore_errors=True)
    shutil.rmtree(directory / "references", ignore_errors=True)  # taken apart by another model of the same name
    overrides = [
        f"gsrm.training.data={rows / 'train.jsonl'}", f"model.tokenizer.type={rows / 'tokenizer'}",
        f"gsrm.llm.prompts={prompts}", f"exp_manager.exp_dir={run_dir}", f"gsrm.training.export={export}",
        f"exp_manager.resume_if_exists={_unfinished(run_dir, made_of)}", *training,
    ]  # fmt: skip
    script = [sys.executable, str(examples / "train_gsrm.py"), "--config-name", cfg.gsrm_demo.train_config]
    (run_dir / "begun.json").parent.mkdir(parents=True, exist_ok=True)
    write_atomically(run_dir / "begun.json", dumps(made_of) + "\n")
    children.run("train_gsrm", [*script, *overrides])
    write_atomically(stamp, dumps(made_of) + "\n")
    return export


def _unfinished(run_dir: Path, made_of: dict[str, Any]) -> str:
    """Was the same training begun before? Then it goes on."""
    begun = run_dir / "begun.json"
    return str(begun.is_file() and json.loads(begun.read_text()) == made_of).lower()


def _serve_model(cfg: Config, children: Children, python: str, model: Path, directory: Path) -> str:
    """vLLM with the model; the address of its API."""
    port = _free_port()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | _VLLM_ENVIRONMENT
    context = json.loads((model / "config.json").read_text())["max_position_embeddings"]
    command = [
        python, "-m", "vllm.entrypoints.cli.main", "serve", str(model), "--host", "127.0.0.1", "--port", str(port),
        "--served-model-name", _MODEL, "--dtype", "float32", "--max-model-len", str(context), "--max-num-seqs", "64",
        "--enforce-eager",
    ]  # fmt: skip
    process = children.start("vLLM", command, log_file=directory / "vllm.log", env=environment)
    root = f"http://127.0.0.1:{port}"
    children.ready("vLLM", process, lambda: True if _answers(f"{root}/health") else None, cfg.gsrm_demo.startup_s)
    return f"{root}/v1"


def _serve_rewards(children: Children, examples: Path, config: list[str], served: list[str], directory: Path) -> str:
    """examples/serve_gsrm.py on a free port; its address."""
    file = directory / "serve_gsrm.log"
    command = [sys.executable, str(examples / "serve_gsrm.py"), *config, *served, "gsrm.server.port=0"]
    process = children.start("serve_gsrm", command, log_file=file)

    def listening() -> str | None:
        found = re.search(r"listening on (http://[\w.:]+)", file.read_text(encoding="utf-8", errors="replace"))
        return found.group(1) if found else None

    return children.ready("serve_gsrm", process, listening, 60.0)


def _finish(
    cfg: Config, directory: Path, figures: dict[str, Any], seconds: dict[str, float], total: float
) -> dict[str, Any]:
    """Figures into summary and report, and the bounds that they must keep."""
    demo, task = cfg.gsrm_demo, tasks.build(cfg.task)
    number = cfg.trainer.rlkd.max_steps * cfg.rlkd.num_prompts
    problems = task.generate("train", cfg.data.shuffle_seed, cfg.data.train_difficulty, number)
    records = (record for path in audit.files(directory).values() for record in audit.read(path))
    compared = agreement(records, {problem.id: problem for problem in problems}, task, cfg.gsrm)
    found = {
        "gsrm_parse_rate": figures["parse_rate"],
        "gsrm_step_f1": figures["steps"]["f1"],
        "gsrm_held_out_rows": figures["rows"],
        "gsrm_failures": sum(figures["failures"].values()),
        **{f"reward_{name}": value for name, value in compared.as_dict().items()},
        **{f"seconds_{name}": round(value, 1) for name, value in seconds.items()},
        "seconds_demo": round(total, 1),
    }
    summary = {**read_summary(directory), **found}
    write_summary(directory, summary)
    write_report(directory, title="rlkd_nemo: a GSRM trained here, served by vLLM", summary=summary)
    for name, value in found.items():
        log.info("%-22s %s", name, f"{value:.4g}" if isinstance(value, float) else value)
    short = [
        f"{name}={found[name]:.4g} is below gsrm_demo.{key}={bound}"
        for name, key, bound in (
            ("gsrm_parse_rate", "min_parse_rate", demo.min_parse_rate),
            ("gsrm_step_f1", "min_step_f1", demo.min_step_f1),
            ("reward_agreement", "min_agreement", demo.min_agreement),
        )
        if found[name] is None or found[name] < bound
    ]
    if short:
        raise GateError("; ".join(short) + f". The figures are in {directory / 'summary.json'}")
    log.info("report: %s", directory / "report.html")
    return summary


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[name] = time.monotonic() - began


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
