"""Held-out evaluation: mean@k accuracy, mean structure, lengths, with intervals by resampling problems."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from rlkd_nemo.errors import FailureBudgetError
from rlkd_nemo.interfaces import RolloutEngine, Scorer
from rlkd_nemo.training.exchange import map_shared
from rlkd_nemo.types import Problem, Rollout, Score


@dataclass(frozen=True)
class Sample:
    """What the figures need of one response and its score.

    Attributes:
        group: number of its problem; `sample` counts within it.
        log_prob: sum over its tokens, nats.
        failed: the system could not score some part of it.
        values: component of the reward to value; None where the system failed.
    """

    group: int
    sample: int
    tokens: int
    log_prob: float
    truncated: bool
    failed: bool
    values: dict[str, float | None]


@dataclass(frozen=True)
class Evaluation:
    """Numbers over all samples of all problems.

    Attributes:
        accuracy: mean@k, mean over problems of the share of samples that verify.
        structure: mean structure reward, unparseable = 0; None when no sample has one.
        accuracy_interval, structure_interval: 95 %, resampling problems.
        entropy: nats a token, estimated from the sampled tokens' log-probs.
        failed: samples without a score because the system failed; left out of every mean.
    """

    accuracy: float
    structure: float | None
    accuracy_interval: tuple[float, float]
    structure_interval: tuple[float, float] | None
    length_tokens: float
    entropy: float
    truncated_fraction: float
    failed: int

    def metrics(self) -> dict[str, float]:
        """`validation/...` for the log."""
        out = {
            "validation/accuracy": self.accuracy,
            "validation/accuracy_low": self.accuracy_interval[0],
            "validation/accuracy_high": self.accuracy_interval[1],
            "validation/length_tokens": self.length_tokens,
            "validation/entropy": self.entropy,
            "validation/truncated_fraction": self.truncated_fraction,
            "validation/failed": float(self.failed),
        }
        if self.structure is not None and self.structure_interval is not None:
            out["validation/structure"] = self.structure
            out["validation/structure_low"], out["validation/structure_high"] = self.structure_interval
        return out


def evaluate(
    engine: RolloutEngine,
    scorer: Scorer,
    problems: Sequence[Problem],
    *,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    refuse_failures: bool = False,
) -> Evaluation:
    """Sample, score and sum up; arguments and errors as of `take` and `summarize`."""
    return summarize(
        take(
            engine,
            scorer,
            problems,
            samples=samples,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed,
            refuse_failures=refuse_failures,
        )
    )


def take(
    engine: RolloutEngine,
    scorer: Scorer,
    problems: Sequence[Problem],
    *,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    refuse_failures: bool = False,
) -> list[Sample]:
    """Sample and score; every rank calls it alike and gets the same result.

    Args:
        refuse_failures: raise FailureBudgetError at the first score that the system failed to give (final figures).
    """
    rollouts = engine.generate(
        problems, samples, stream=("evaluation", seed), temperature=temperature, max_new_tokens=max_new_tokens
    )
    scores = map_shared(lambda part: scorer.score(part), rollouts)
    found = [_sample(rollout, score) for rollout, score in zip(rollouts, scores)]
    failed = sum(one.failed for one in found)
    if failed and refuse_failures:
        first = next(score for score, one in zip(scores, found) if one.failed)
        raise FailureBudgetError(
            f"{failed} of {len(scores)} evaluation samples could not be scored "
            f"({ {n: p.failure.value for n, p in first.components.items() if p.failure is not None} }); "
            "an evaluation with holes is no result"
        )
    return found


def _sample(rollout: Rollout, score: Score) -> Sample:
    parts = score.components
    return Sample(
        group=rollout.group,
        sample=rollout.sample,
        tokens=len(rollout.response_ids),
        log_prob=sum(rollout.log_probs),
        truncated=rollout.truncated,
        failed=any(part.failure is not None and part.failure.by_system for part in parts.values()),
        values={name: part.value for name, part in parts.items()},
    )


def summarize(samples: Sequence[Sample]) -> Evaluation:
    """The figures. Raises: FailureBudgetError when not one sample has an outcome."""
    accuracy, accuracy_interval = _mean_over_problems(samples, "outcome")
    if accuracy is None or accuracy_interval is None:
        raise FailureBudgetError(
            f"not one of {len(samples)} evaluation samples has an outcome: an accuracy of nothing is not 0; "
            "see the failures of the scorer"
        )
    structure, structure_interval = _mean_over_problems(samples, "structure")
    tokens = sum(one.tokens for one in samples)
    return Evaluation(
        accuracy=accuracy,
        structure=structure,
        accuracy_interval=accuracy_interval,
        structure_interval=structure_interval,
        length_tokens=tokens / len(samples),
        entropy=-sum(one.log_prob for one in samples) / max(tokens, 1),
        truncated_fraction=sum(one.truncated for one in samples) / len(samples),
        failed=sum(one.failed for one in samples),
    )


def _mean_over_problems(
    samples: Sequence[Sample], name: str, resamples: int = 1000
) -> tuple[float | None, tuple[float, float] | None]:
    """Mean over problems of the mean over a problem's samples, and its 95 % resampling interval."""
    by_problem: dict[int, list[float]] = {}
    for one in samples:
        value = one.values.get(name)
        if value is not None:
            by_problem.setdefault(one.group, []).append(value)
    means = [sum(values) / len(values) for values in by_problem.values()]
    if not means:
        return None, None
    picker = random.Random(0)
    resampled = sorted(sum(picker.choices(means, k=len(means))) / len(means) for _ in range(resamples))
    low, high = resampled[int(0.025 * resamples)], resampled[int(0.975 * resamples)]
    return sum(means) / len(means), (low, high)
