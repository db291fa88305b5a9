"""Knights and knaves with 2 to 8 people: generated, with one solution each, and worked paths in steps.

The setting of Logic-RL and of RLAD's logic runs (arXiv:2602.22495): knights always tell the truth, knaves always lie,
everyone makes one statement, and the answer between <answer> tags names each person's kind. The generator and the wording
are our own; subsets PPL2 to PPL8 are difficulties 2 to 8.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from functools import lru_cache

from rlkd_nemo.config.schema import KnightsAndKnavesTask
from rlkd_nemo.errors import ConfigError, InputError
from rlkd_nemo.gsrm import steps
from rlkd_nemo.tasks.answers import final_answer
from rlkd_nemo.tasks.chat import Chat
from rlkd_nemo.tasks.knights import Claim, sample, say, shape, solutions, work_out
from rlkd_nemo.types import Problem

SMALLEST, LARGEST = 2, 8
# Tenths of all puzzles, by a hash of their shape: another cast, or another order of the people or of the halves of a
# statement, is no other puzzle. Within a held-out split puzzles differ in their statements, which two people have more of.
SPLITS = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}
MISSES = 5_000  # so many candidates in a row without a new puzzle: the level has no more, or next to none
NAMES = (
    "Ada", "Bruno", "Clara", "Dario", "Edith", "Felix", "Greta", "Hugo", "Irene", "Jonas", "Karla", "Louis", "Marta",
    "Noel", "Olga", "Pablo", "Quinn", "Rosa", "Samuel", "Thea", "Ulrich", "Vera", "Walter", "Xenia", "Yusuf", "Zelda",
)  # fmt: skip
_SAID = re.compile(r"\b(\w+)\s+is\s+an?\s+(knight|knave)\b", re.IGNORECASE)


class KnightsAndKnaves:
    """The task; see the module.

    Raises: ConfigError for fewer than one teacher path; InputError for a chat template that cannot be used.
    """

    def __init__(self, settings: KnightsAndKnavesTask) -> None:
        if settings.num_teacher_paths < 1:
            raise ConfigError(f"task.num_teacher_paths={settings.num_teacher_paths}; wanted at least 1")
        self.num_teacher_paths = settings.num_teacher_paths
        self.chat = Chat(settings.chat_template)
        self._held_out: dict[tuple[str, int, str], tuple[random.Random, list[list[Claim]], set[str]]] = {}

    def generate(self, split: str, seed: int, difficulty: str, n: int, start: int = 0) -> list[Problem]:
        """Problems start..start+n of a stream.

        Args: difficulty: number of people, `5` or `3-7` (uniform). Train problems may repeat, held-out ones do not.
        Raises: InputError when a split has too few distinct puzzles; ConfigError for a split or difficulty that does not
        exist.
        """
        if split not in SPLITS:
            raise ConfigError(f"split {split!r} does not exist; wanted one of {', '.join(SPLITS)}")
        sizes = _sizes(difficulty)
        if split == "train":
            drawn = [
                self._draw(_generator("train", seed, difficulty, i), split, sizes, None)
                for i in range(start, start + n)
            ]
        else:
            drawn = self._distinct(split, seed, difficulty, start + n)[start:]
        return [
            self._problem(claims, _generator("names", split, seed, difficulty, i))
            for i, claims in enumerate(drawn, start)
        ]

    def demonstrations(
        self, split: str, seed: int, difficulty: str, n: int, *, strategies: Sequence[str], noise: float, start: int = 0
    ) -> list[tuple[Problem, str]]:
        """Problems with their first worked path; `strategies` is not read, and noise other than 0 is a ConfigError."""
        if noise:
            raise ConfigError(f"noise={noise}: paths of task=knights_and_knaves are right; wanted 0")
        return [(problem, problem.teacher_paths[0]) for problem in self.generate(split, seed, difficulty, n, start)]

    def verify(self, problem: Problem, response: str) -> bool:
        """Does the final answer name every person once, and each one's kind rightly?"""
        found = final_answer(response)
        if found is None:
            return False
        said = [(name.casefold(), kind.casefold()) for name, kind in _SAID.findall(found)]
        gold = [(name.casefold(), kind.casefold()) for name, kind in _SAID.findall(problem.answer)]
        return sorted(said) == sorted(gold)

    def symbols(self) -> None:
        """Free text has no closed vocabulary."""
        return None

    def notation(self) -> None:
        """Steps carry the usual tags."""
        return None

    def _distinct(self, split: str, seed: int, difficulty: str, number: int) -> list[list[Claim]]:
        """The first `number` puzzles of a held-out stream, no two with the same statements."""
        key = (split, seed, difficulty)
        rng, found, seen = self._held_out.setdefault(key, (_generator(*key), [], set()))
        while len(found) < number:
            try:
                found.append(self._draw(rng, split, _sizes(difficulty), seen))
            except InputError as err:
                raise InputError(
                    f"the {split} split has only {len(found)} distinct puzzles of difficulty {difficulty}, {number} were "
                    "asked for; ask for fewer (validation.num_problems, demo.test_problems) or raise "
                    "data.validation_difficulty"
                ) from err
        return found[:number]

    def _draw(self, rng: random.Random, split: str, sizes: Sequence[int], seen: set[str] | None) -> list[Claim]:
        for _ in range(MISSES):
            claims = sample(rng, rng.choice(sizes))
            if int(shape(claims), 16) % 10 not in SPLITS[split] or (seen is not None and repr(claims) in seen):
                continue
            if seen is not None:
                seen.add(repr(claims))
            return claims
        raise InputError(f"no {split} puzzle of {sizes} people was found among {MISSES}")

    def _problem(self, claims: list[Claim], rng: random.Random) -> Problem:
        people = len(claims)
        names = rng.sample(NAMES, people)
        (solution,) = solutions(claims)
        answer = "\n".join(
            f"({i}) {name} is a {'knight' if value else 'knave'}"
            for i, (name, value) in enumerate(zip(names, solution), 1)
        )
        paths: list[str] = []
        for first in range(people):
            order = [*range(first, people), *range(first)]
            worked = f"{steps.format(work_out(claims, names, order))}\n</think>\n<answer>\n{answer}\n</answer>"
            if worked not in paths:
                paths.append(worked)
            if len(paths) == self.num_teacher_paths:
                break
        said = "\n".join(f'{name} says: "{say(claim, names)}."' for name, claim in zip(names, claims))
        question = (
            "On an island everyone is either a knight or a knave. Knights always tell the truth, and knaves always lie. "
            f"You meet {people} people: {', '.join(names)}.\n{said}\n"
            'Who is a knight and who is a knave? Give one line for each of them, such as "(1) '
            f'{names[0]} is a knight", in the order above.'
        )
        return Problem(
            id=hashlib.sha256(f"{claims} {names}".encode()).hexdigest()[:16],
            prompt=self.chat.prompt(question),
            answer=answer,
            teacher_paths=tuple(paths),
            difficulty=str(people),
            extra={"claims": repr(claims)},
        )


def notation(settings: KnightsAndKnavesTask) -> None:
    """Steps carry the usual tags."""
    return None


def build(settings: KnightsAndKnavesTask) -> KnightsAndKnaves:
    """The task for its settings. Raises as `KnightsAndKnaves` does."""
    return KnightsAndKnaves(settings)


def _generator(*name: object) -> random.Random:
    """Random numbers named by their arguments: equal on every machine, independent of one another."""
    return random.Random(int.from_bytes(hashlib.sha256(repr(("knights", *name)).encode()).digest()[:8], "big"))


@lru_cache(maxsize=64)
def _sizes(difficulty: str) -> range:
    first, dash, last = str(difficulty).partition("-")
    if first.isdecimal() and (last.isdecimal() or not dash):
        low, high = int(first), int(last or first)
        if SMALLEST <= low <= high <= LARGEST:
            return range(low, high + 1)
    raise ConfigError(
        f"difficulty={difficulty!r} of task=knights_and_knaves (data.train_difficulty, data.validation_difficulty); "
        f"wanted a number of people such as 5, or a range such as 3-7, within {SMALLEST}-{LARGEST}"
    )
