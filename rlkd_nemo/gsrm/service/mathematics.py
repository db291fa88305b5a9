"""Are two answers mathematically the same? Decided without a language model where that is safe."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys

from rlkd_nemo.tasks import answers

log = logging.getLogger(__name__)
_START_S = 60.0  # the computer algebra system takes seconds to load
_LONGEST = 500  # characters
_COMMAND = re.compile(r"\\[A-Za-z]+")
_FUNCTIONS = {"sin", "cos", "tan", "log", "exp", "sqrt", "pi", "ln", "mod", "max", "min"}
_SMALL_WORDS = {"no", "is", "at", "or", "if", "in", "of", "to", "by", "it", "as", "on", "so", "we", "an", "be", "do"}


class MathVerify:
    """Exact numbers at once; other formulas by math-verify in a process of its own, under a time limit.

    Args: limit_s: for one pair, after which the process is ended and the pair is left undecided; 0: never used.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._missing = False

    async def equal(self, teacher: str, student: str) -> bool | None:
        """True or False where that is certain, None where a model should decide.

        Two numbers are compared exactly. Formulas that math-verify finds equal are; that it does not find them equal
        proves nothing. Prose is never given to it: from `not 5` it would read 5.
        """
        if not self._limit_s:
            return None
        if answers.equal(teacher, student):
            return True
        if answers.number(teacher) is not None and answers.number(student) is not None:
            return False
        if self._missing or not (formula(teacher) and formula(student)):
            return None
        async with self._turn:
            try:
                return True if await self._ask(teacher, student) else None
            except (asyncio.TimeoutError, OSError, ValueError) as err:
                log.warning(
                    "math-verify was ended (%s %s) on %r, %r", type(err).__name__, err, teacher[:80], student[:80]
                )
                self._end()
                return None
            except asyncio.CancelledError:
                self._end()  # its answer would be taken for the next pair's
                raise

    async def aclose(self) -> None:
        """End the process."""
        process = self._process
        self._end()
        if process is not None:
            await process.wait()

    async def _ask(self, teacher: str, student: str) -> bool:
        if self._process is None:
            await self._start()
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps([teacher, student]).encode() + b"\n")
        return bool(json.loads(await asyncio.wait_for(process.stdout.readline(), self._limit_s)))

    async def _start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "rlkd_nemo.gsrm.service.math_worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        ready = await asyncio.wait_for(self._process.stdout.readline(), _START_S)
        if json.loads(ready or b'""') != "ready":
            self._missing = True
            raise OSError("math-verify cannot be loaded (pip install rlkd_nemo[gsrm]); the model judges all answers")

    def _end(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
        self._process = None


def formula(text: str) -> bool:
    """Is the text only a formula, without words? LaTeX commands and names of functions are no words."""
    if len(text) > _LONGEST or not re.search(r"[0-9A-Za-z\\]", text):
        return False
    words = re.findall(r"[^\W\d_]+", _COMMAND.sub(" ", text))
    return all(word in _FUNCTIONS or (len(word) <= 2 and word.lower() not in _SMALL_WORDS) for word in words)
