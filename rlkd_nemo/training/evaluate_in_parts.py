"""A long evaluation, part by part: finished parts are kept, so that a stop costs the part under way and no more."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkd_nemo.errors import ConfigError, InputError, Preempted
from rlkd_nemo.interfaces import RolloutEngine, Scorer
from rlkd_nemo.report.files import dumps, plain, write_atomically
from rlkd_nemo.training.evaluate import Evaluation, Sample, summarize, take
from rlkd_nemo.training.exchange import from_main, world
from rlkd_nemo.types import Problem


class KeptSamples:
    """A file of finished samples: a line that says what they are of, then one line a sample.

    Args:
        about: all that the samples depend on, by name; samples of anything else are refused.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path, self.about = path, plain(about)

    def read(self) -> list[Sample]:
        """What an earlier process kept; empty without a file.

        Raises: ConfigError naming what has changed since; InputError for a file that is none of ours.
        """
        if not self.path.exists():
            return []
        try:
            # At line feeds only: the texts of settings may hold Unicode's other line separators as they are.
            was, *lines = map(json.loads, self.path.read_text(encoding="utf-8").removesuffix("\n").split("\n"))
            samples = [Sample(**line) for line in lines]
            changed = sorted(key for key in was.keys() | self.about.keys() if was.get(key) != self.about.get(key))
        except (ValueError, TypeError, AttributeError) as err:
            raise InputError(f"{self.path} cannot be read ({err}); remove it to evaluate anew") from err
        if changed:
            told = "; ".join(f"{key}: {was.get(key)}, now {self.about.get(key)}" for key in changed[:6])
            raise ConfigError(
                f"{self.path} holds an unfinished evaluation of something else ({told}): going on would mix the two. Set "
                "exp_manager.exp_dir to another directory, or exp_manager.resume_if_exists=false to start anew there"
            )
        return samples

    def write(self, samples: Sequence[Sample]) -> None:
        """Replace what is kept, whole or not at all."""
        write_atomically(self.path, "".join(dumps(line) + "\n" for line in [self.about, *samples]))

    def remove(self) -> None:
        """They are not needed any more."""
        self.path.unlink(missing_ok=True)


def evaluate_in_parts(
    engine: RolloutEngine,
    scorer: Scorer,
    problems: Sequence[Problem],
    *,
    kept: KeptSamples,
    part: int,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    stop: Callable[[], bool] = lambda: False,
    on_part: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """As `evaluate` with `refuse_failures`, going on from `kept`; every rank calls it alike.

    A response's random numbers are named by its problem, so that parts give what all at once would.

    Args:
        problems: distinct ones.
        part: problems that are sampled at once.
        stop: asked before each part; the same answer on every rank.
        on_part: told how many problems are finished, kept ones included; before the first part and after each.
    Raises: Preempted when told to stop, what is finished being kept; FailureBudgetError, the part's samples not kept.
    """
    done = from_main(kept.read)
    finished = {one.group for one in done}
    left = [group for group in range(len(problems)) if group not in finished]
    on_part(len(problems) - len(left))
    for start in range(0, len(left), part):
        if stop():
            raise Preempted(
                f"stopped with {len(problems) - len(left) + start} of {len(problems)} problems evaluated, kept in "
                f"{kept.path}; the same command goes on from there"
            )
        groups = left[start : start + part]
        found = take(
            engine,
            scorer,
            [problems[group] for group in groups],
            samples=samples,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed,
            refuse_failures=True,
        )
        done += [dataclasses.replace(one, group=groups[one.group]) for one in found]
        if world()[0] == 0:
            kept.write(done)
        on_part(len(problems) - len(left) + start + len(groups))
    return summarize(sorted(done, key=lambda one: (one.group, one.sample)))
