"""`task`: one class a task, chosen by `task.name`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ExpressionsTask:
    """Nested integer expressions modulo m, one letter an operator."""

    modulus: int = 5
    num_teacher_paths: int = 1  # strategies in the reference, the teacher's own first
    style: str = "letters"  # letters: `c:2*3=1;` a step; prose: the same steps as sentences in several phrasings


@dataclass
class PromptsTask:
    """JSON lines with problem, answer and teacher paths; split by content hash."""

    path: str = ""
    problem_key: str = "problem"
    answer_key: str = "answer"
    teacher_path_key: str = "teacher_path"
    validation_fraction: float = 0.1
    test_fraction: float = 0.1


@dataclass
class KnightsAndKnavesTask:
    """Puzzles with one solution; data.train_difficulty and validation_difficulty are numbers of people, 2 to 8."""

    num_teacher_paths: int = 1  # worked paths a puzzle, each beginning with another person where one has to suppose
    chat_template: str | None = None  # directory whose chat template wraps the question; null: plain text


@dataclass
class MathTask:
    """Mathematics from public files: JSON lines or one JSON list (tasks/math.py lists the layouts)."""

    path: str = ""
    validation_path: str | None = None  # file of its own; null: validation_fraction of `path`
    test_path: str | None = None
    layout: str = "auto"  # of all files: gsm8k, math, answer, openr1, verl; auto: each by the keys of its first row
    validation_fraction: float = 0.02  # by content hash; not read where that split has a file of its own
    test_fraction: float = 0.02
    num_teacher_paths: int = 1  # most references a problem that are kept, verified ones first
    chat_template: str | None = None  # directory whose chat template wraps the problem; null: plain text
    verify_s: float = 5.0  # for math-verify on one answer, which counts as wrong after that


TASKS: dict[str, type] = {
    "expressions": ExpressionsTask,
    "knights_and_knaves": KnightsAndKnavesTask,
    "math": MathTask,
    "prompts": PromptsTask,
}
