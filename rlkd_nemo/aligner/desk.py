"""Token rows of NeMo-Aligner's reward protocol to rewards of this package's scorers; knows no server and no NeMo."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlkd_nemo.errors import InputError
from rlkd_nemo.interfaces import Scorer, Tokenizer
from rlkd_nemo.types import Problem, Rollout

log = logging.getLogger(__name__)
NO_REWARD = float("nan")


@dataclass(frozen=True)
class Row:
    """One response, as tokens or as text.

    Attributes:
        tokens: prompt and response without padding; empty for a row that only fills a batch.
        text: prompt and response instead of tokens, as `sentences` brings them.
        prompt_length: tokens of the prompt, where the client told it; None: the prompt is recognised.
        label: the client's name for the row, for the log.
    """

    tokens: Sequence[int] = ()
    text: str | None = None
    prompt_length: int | None = None
    label: str = ""


class RewardDesk:
    """Finds each row's problem by its prompt, and scores.

    White space is not compared: a tokenizer may give it back differently. A prompt is known by its text and by what is
    left of it after encoding and decoding: chat templates close their turns with the end-of-text token (Qwen's <|im_end|>,
    Llama's <|eot_id|>), which decoding leaves out.

    Args:
        problems: all that may be asked about, with their teacher paths.
        end_strings: tokens that end a response like the end of text does, the actor's own setting of that name; what is no
            token of this tokenizer is passed over.
    Raises: InputError without a single problem, or when two have the same prompt and different answers.
    """

    def __init__(
        self, scorer: Scorer, problems: Iterable[Problem], tokenizer: Tokenizer, end_strings: Sequence[str] = ()
    ) -> None:
        self.scorer, self.tokenizer = scorer, tokenizer
        pieces = {piece: index for index, piece in enumerate(tokenizer.pieces())}
        self._ends = {tokenizer.eos_id, *(pieces[text] for text in end_strings if text in pieces)}
        self._problems: dict[str, Problem] = {}
        for problem in problems:
            for prompt in (problem.prompt, tokenizer.decode(tokenizer.encode(problem.prompt))):
                first = self._problems.setdefault(_bare(prompt), problem)
                if first.answer != problem.answer:
                    raise InputError(
                        f"problems {first.id} and {problem.id} have the same prompt and different answers; a reward server "
                        "cannot tell them apart"
                    )
        if not self._problems:
            raise InputError("the reward server has no problem to score responses of; see the section task")
        # Longest first: one prompt may begin with another.
        self._lengths = sorted({len(prompt) for prompt in self._problems}, reverse=True)

    def rewards(self, rows: Sequence[Row]) -> list[float]:
        """One reward a row; NaN for a filler, for an unknown prompt, and where the system failed. The log says which."""
        out = [NO_REWARD] * len(rows)
        rollouts: list[Rollout] = []
        places: list[int] = []
        for place, row in enumerate(rows):
            if not len(row.tokens) and not row.text:
                continue
            rollout = self._rollout(row, place)
            if rollout is None:
                log.warning("row %s: its prompt belongs to no problem of this server; no reward", row.label or place)
                continue
            rollouts.append(rollout)
            places.append(place)
        for place, score in zip(places, self.scorer.score(rollouts) if rollouts else []):
            if score.reward is None:
                failures = {
                    n: c.failure.value for n, c in score.components.items() if c.failure and c.failure.by_system
                }
                log.warning("row %s: no reward (%s)", rows[place].label or place, failures)
            else:
                out[place] = float(score.reward)
        return out

    def _rollout(self, row: Row, place: int) -> Rollout | None:
        ids = list(row.tokens)
        ended = row.text is not None or ids[-1] in self._ends
        tokens = ids[:-1] if ended else ids  # an end that is no special token would be part of the text
        if row.text is None and row.prompt_length is not None:
            problem = self._problems.get(_bare(self.tokenizer.decode(tokens[: row.prompt_length])))
            text = self.tokenizer.decode(tokens[row.prompt_length :])
        else:
            problem, text = self._recognise(self.tokenizer.decode(tokens) if row.text is None else row.text)
        if problem is None:
            return None
        start = row.prompt_length or 0
        return Rollout(
            problem=problem, group=place, sample=0, prompt_ids=ids[:start], response_ids=ids[start:], log_probs=[],
            text=text, truncated=not ended, weight_version=0, temperature=1.0,
        )  # fmt: skip

    def _recognise(self, text: str) -> tuple[Problem | None, str]:
        """The problem whose prompt begins the text, and the rest; white space within the rest stays."""
        places = [i for i, character in enumerate(text) if not character.isspace()]
        bare = "".join(text[i] for i in places)
        for length in self._lengths:
            problem = self._problems.get(bare[:length]) if length <= len(bare) else None
            if problem is not None:
                return problem, text[places[length - 1] + 1 :]
        return None, text


def _bare(text: str) -> str:
    return "".join(text.split())
