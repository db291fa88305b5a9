"""Several references merged into one tree: the implicit multi-branch structure of arXiv:2505.16142 made explicit.

Own extension, not in the paper: there a problem has one reference.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlkd_nemo.errors import ConfigError, InputError
from rlkd_nemo.gsrm.alignment import Asking, StructureResult, Verdict, answered, compare_solving, same_meta
from rlkd_nemo.interfaces import Judge
from rlkd_nemo.types import Step

# paths[r][i]: node of step i of reference r. References that agree so far share nodes.
Tree = list[list[int]]


def merge(references: Sequence[Sequence[Step]], judge: Judge, problem: str = "") -> Tree:
    """Steps with the same parent whose meta-reasoning is judged equal become one node; the root is no step.

    Raises: InputError for a reference without steps; what the judge raises.
    """
    return answered(merging(references), judge, problem)


def merging(references: Sequence[Sequence[Step]]) -> Asking[Tree]:
    """`merge` without a judge."""
    if not references or not all(references):
        raise InputError("a tree of references wants at least one, each with steps")
    first_step: list[Step] = []  # the step that made each node speaks for it
    children: dict[int, list[int]] = {}
    paths: Tree = []
    for steps in references:
        node, path = -1, []
        for step in steps:
            for child in children.setdefault(node, []):
                if (yield from same_meta(first_step[child], step)):
                    break
            else:
                child = len(first_step)
                first_step.append(step)
                children[node].append(child)
            path.append(child)
            node = child
        paths.append(path)
    return paths


def tree_reward(
    student: Sequence[Step],
    references: Sequence[Sequence[Step]],
    tree: Tree,
    judge: Judge,
    norm: str = "teacher",
    problem: str = "",
) -> tuple[StructureResult, int]:
    """The prefix rule on a tree: the student goes from the root to the child that its next step matches.

    Where merged steps word question or answer differently, the student gets the best of them. The sum is divided by
    the number of steps of the shortest reference through the last matched node (before any match: of all). With one
    reference it is the prefix rule.
    Args: tree: `merge(references, ...)`.   norm: `teacher` or `none`.
    Returns: the result, and the index of the reference that it divides by.
    Raises: ConfigError for another norm; what the judge raises.
    """
    return answered(asking(student, references, tree, norm), judge, problem)


def asking(
    student: Sequence[Step], references: Sequence[Sequence[Step]], tree: Tree, norm: str = "teacher"
) -> Asking[tuple[StructureResult, int]]:
    """`tree_reward` without a judge."""
    if norm not in ("teacher", "none"):
        raise ConfigError(f"gsrm.norm={norm!r} compares with one reference, a tree has several; wanted teacher or none")
    through = list(range(len(references)))  # references that go through the current node
    verdicts: list[Verdict] = []
    for depth, mine in enumerate(student):
        children = dict.fromkeys(tree[r][depth] for r in through if depth < len(references[r]))
        for child in children:
            sharing = [r for r in through if depth < len(references[r]) and tree[r][depth] == child]
            if (yield from same_meta(references[sharing[0]][depth], mine)):
                distinct = dict.fromkeys(references[r][depth] for r in sharing)
                options = []
                for theirs in distinct:
                    options.append(Verdict(depth, depth, True, *(yield from compare_solving(theirs, mine))))
                verdicts.append(max(options, key=lambda verdict: verdict.weight))
                through = sharing
                break
        else:
            if children:
                verdicts.append(Verdict(depth, depth, False))
            break
    shortest = min(through, key=lambda r: len(references[r]))
    n_teacher = len(references[shortest])
    matched = sum(verdict.meta for verdict in verdicts)
    weights = [verdict.weight for verdict in verdicts]
    compared = max(len(weights), min(len(student), n_teacher))
    return StructureResult(
        reward=sum(weights) / (n_teacher if norm == "teacher" else 1),
        matched=matched,
        weights=tuple(weights + [0.0] * (compared - len(weights))),
        verdicts=tuple(verdicts),
        n_student=len(student),
        n_teacher=n_teacher,
        parts_at=matched if matched < n_teacher else None,
    ), shortest
