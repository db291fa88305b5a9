"""What must hold between the settings of tasks whose text is free: files, splits, tokenizer, levels."""

from __future__ import annotations

from collections.abc import Iterator

from rlkd_nemo.config.schema import Config, ExpressionsTask, KnightsAndKnavesTask, MathTask, PromptsTask
from rlkd_nemo.config.tree import nearest

MATH_LAYOUTS = ("auto", "gsm8k", "math", "answer", "openr1", "verl")


def problems(cfg: Config) -> Iterator[str]:
    """Every broken rule of `task` as one sentence with its key."""
    task = cfg.task
    if isinstance(task, ExpressionsTask):
        return
    name = {PromptsTask: "prompts", MathTask: "math", KnightsAndKnavesTask: "knights_and_knaves"}[type(task)]
    if cfg.model.tokenizer.library == "task":
        yield (
            f"model.tokenizer.library=task wants a closed vocabulary, which task={name} has not; "
            "wanted bytes or huggingface"
        )
    if isinstance(task, (PromptsTask, MathTask)):
        if not task.path:
            kind = "JSON-lines file" if isinstance(task, PromptsTask) else "file of JSON lines or a JSON list"
            yield f"task.path is not set; task={name} wants a {kind} there"
        held_out = task.validation_fraction + task.test_fraction
        if min(task.validation_fraction, task.test_fraction) < 0 or held_out >= 1:
            yield (
                f"task.validation_fraction={task.validation_fraction} and task.test_fraction="
                f"{task.test_fraction} leave nothing to train on; wanted two numbers >= 0 with a sum below 1"
            )
    if isinstance(task, (MathTask, KnightsAndKnavesTask)) and task.num_teacher_paths < 1:
        yield f"task.num_teacher_paths={task.num_teacher_paths} is out of range; wanted a whole number >= 1"
    if isinstance(task, MathTask):
        if task.layout not in MATH_LAYOUTS:
            hint = nearest(task.layout, MATH_LAYOUTS)
            yield f"task.layout={task.layout!r} is unknown; wanted one of {', '.join(MATH_LAYOUTS)}{hint}"
        if not task.verify_s > 0:
            yield f"task.verify_s={task.verify_s} is out of range; wanted a number > 0"
        for split in ("validation", "test"):
            fraction = getattr(task, f"{split}_fraction")
            if getattr(task, f"{split}_path") and fraction not in (0, getattr(MathTask, f"{split}_fraction")):
                yield (
                    f"task.{split}_fraction={fraction} is not read, since task.{split}_path is set; remove one of them"
                )
