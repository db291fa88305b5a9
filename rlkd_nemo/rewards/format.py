"""Has the response the form <think>...</think><answer>...</answer>?

Source: R_format and R_tag of the released code of arXiv:2505.16142. There every tag stands beside a line break; here
line breaks are optional, since a closed vocabulary may have none. An opening tag that the prompt gave away counts.
"""

from __future__ import annotations

import re

from rlkd_nemo.types import Component, Rollout

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
# Text after the line of </answer> is tolerated, as published.
_FORM = re.compile(r"\s*<think>.*?</think>\s*<answer>.*?</answer>[ \t]*$", re.DOTALL | re.MULTILINE)


def form(rollout: Rollout) -> Component:
    """1 if thinking and answer are there, in order, from the start on; else 0, and 0 for a response that was cut off."""
    return Component(float(not rollout.truncated and _FORM.match(_judged(rollout)) is not None))


def tags(rollout: Rollout) -> Component:
    """A quarter for each of the four tags that occurs exactly once."""
    text = _judged(rollout)
    return Component(sum(text.count(tag) == 1 for tag in TAGS) / len(TAGS))


def _judged(rollout: Rollout) -> str:
    given = rollout.problem.prompt.rstrip().endswith("<think>")
    return f"<think>{rollout.text}" if given else rollout.text
