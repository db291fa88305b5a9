"""All verdicts of a response in one reply: {"1": {"meta": "yes", "answer": "no"}, "2": {"meta": "no"}}.

Constrained decoding, the parser and the training data take the form from here; the prompt shows it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from rlkd_nemo.errors import BadReply
from rlkd_nemo.gsrm.schema import shown, unique

YES_NO = ("yes", "no")


def write_verdicts(verdicts: Mapping[tuple[int, str], bool]) -> str:
    """Verdicts by number and kind as a judge should write them. `read_verdicts` gives them back."""
    pairs: dict[str, dict[str, str]] = {}
    for (number, kind), same in verdicts.items():
        pairs.setdefault(str(number), {})[kind] = YES_NO[not same]
    return json.dumps(pairs)


def read_verdicts(reply: str, asked: Mapping[int, Collection[str]]) -> dict[tuple[int, str], bool]:
    """Verdicts of one reply. Raises BadReply unless they are exactly those asked for, each yes or no."""
    try:
        value = json.loads(reply, object_pairs_hook=unique)
    except (ValueError, RecursionError) as err:
        raise BadReply(f"the judge's verdicts are no JSON ({err}): {shown(reply)}") from err
    wanted = {str(number): set(kinds) for number, kinds in asked.items()}
    found = (
        {number: set(pair) if isinstance(pair, dict) else None for number, pair in value.items()}
        if isinstance(value, dict)
        else None
    )
    if found != wanted:
        raise BadReply(f"the judge gave other verdicts than those asked for: {shown(reply)}")
    verdicts = {(int(number), kind): said for number, pair in value.items() for kind, said in pair.items()}
    if not all(isinstance(said, str) and said in YES_NO for said in verdicts.values()):
        raise BadReply(f"the judge gave a verdict that is neither yes nor no: {shown(reply)}")
    return {where: said == "yes" for where, said in verdicts.items()}


def verdicts_schema(asked: Mapping[int, Collection[str]]) -> dict[str, Any]:
    """JSON schema of a reply with exactly these numbers and kinds."""
    word = {"type": "string", "enum": list(YES_NO)}

    def closed(properties: dict[str, Any]) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    return closed({str(number): closed(dict.fromkeys(kinds, word)) for number, kinds in asked.items()})
