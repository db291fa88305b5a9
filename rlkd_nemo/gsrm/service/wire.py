"""JSON on the wire: bodies to items, results to bytes. What is wrong with a body is one sentence that names the place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlkd_nemo.errors import InputError
from rlkd_nemo.gsrm.service.core import Item, Result
from rlkd_nemo.types import Failure, Step

_SCORE_KEYS = {"id", "problem", "response", "reference_id", "references", "domain"}
_REFERENCE_KEYS = {"id", "problem", "references", "domain"}


class BadRequest(InputError):
    """The whole request cannot be read; `code` names the kind for programs, `status` is HTTP's."""

    def __init__(self, message: str, code: str = "bad_request", status: int = 400) -> None:
        super().__init__(message)
        self.code, self.status = code, status


@dataclass(frozen=True)
class Asked:
    """One entry of a request; `reference_id` instead of references, where it was given."""

    item: Item
    reference_id: str | None = None


@dataclass(frozen=True)
class ScoreRequest:
    """`POST /score`; `deadline_s` None: the server's own."""

    asked: list[Asked]
    deadline_s: float | None = None


def score_request(body: bytes, max_items: int) -> ScoreRequest:
    """Read the body of `POST /score`. Raises BadRequest."""
    whole = _object(body, {"items", "deadline_s"})
    deadline = whole.get("deadline_s")
    if deadline is not None and (
        isinstance(deadline, bool) or not isinstance(deadline, (int, float)) or not deadline > 0
    ):
        raise BadRequest(f"deadline_s={deadline!r}; wanted a number of seconds above 0, or nothing")
    asked = []
    for place, entry in _items(whole, max_items, _SCORE_KEYS):
        reference_id = _text(entry, place, "reference_id", optional=True)
        if (reference_id is None) == ("references" not in entry):
            raise BadRequest(f"{place}: wanted either reference_id or references")
        references = () if reference_id is not None else _references(entry, place)
        asked.append(Asked(_item(entry, place, _text(entry, place, "response"), references), reference_id))
    return ScoreRequest(asked, deadline)


def references_request(body: bytes, max_items: int) -> list[Item]:
    """Read the body of `POST /references`: items without a response. Raises BadRequest."""
    whole = _object(body, {"items"})
    return [
        _item(entry, place, "", _references(entry, place)) for place, entry in _items(whole, max_items, _REFERENCE_KEYS)
    ]


def content_key(item: Item, version: str) -> bytes:
    """The hash of all that an item's result depends on: everything but its id."""
    digest = hashlib.blake2b(digest_size=16)
    domain = "" if item.domain is None else f"={item.domain}"  # an empty one has another prompt than none
    for part in (version, domain, item.problem, item.response, *item.references):
        raw = part.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "big"))
        digest.update(raw)
    return digest.digest()


def encode(result: Result) -> bytes:
    """A result as JSON without its id, which `with_id` puts in: equal items share the rest."""
    # Field by field: dataclasses.asdict copies steps and details deeply, which costs more than all the rest.
    plain = {
        "status": result.status,
        "reward": result.reward,
        "matched": result.matched,
        "student_steps": [vars(step) for step in result.student_steps],
        "teacher_steps": [vars(step) for step in result.teacher_steps],
        "steps": [dict(step) for step in result.steps],
        "failure": result.failure.value if result.failure else None,
        "error": result.error,
        "detail": dict(result.detail),
    }
    return json.dumps(plain, allow_nan=False, separators=(",", ":")).encode()


def with_id(item_id: str, encoded: bytes) -> bytes:
    """One entry of an answer."""
    return b'{"id":' + json.dumps(item_id).encode() + b"," + encoded[1:]


def decode(plain: Mapping[str, Any]) -> Result:
    """One entry of an answer back to a result. Raises ValueError, KeyError or TypeError when it is none."""
    failure = plain["failure"]
    return Result(
        id=plain["id"],
        status=plain["status"],
        reward=None if plain["reward"] is None else float(plain["reward"]),
        matched=int(plain["matched"]),
        student_steps=tuple(Step(**step) for step in plain["student_steps"]),
        teacher_steps=tuple(Step(**step) for step in plain["teacher_steps"]),
        steps=tuple(plain["steps"]),
        failure=None if failure is None else Failure(failure),
        error=plain.get("error"),
        detail=plain.get("detail") or {},
    )


def failed(item_id: str, failure: Failure, error: str) -> Result:
    """No reward, and why."""
    return Result(item_id, "failed", None, failure=failure, error=error)


def _object(body: bytes, known: set[str]) -> dict[str, Any]:
    try:
        whole = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as err:
        raise BadRequest(f"the body is not UTF-8 (byte {err.start}: {err.reason})", "invalid_utf8") from err
    except (ValueError, RecursionError) as err:
        raise BadRequest(f"the body is not JSON ({err})", "invalid_json") from err
    if not isinstance(whole, dict) or not isinstance(whole.get("items"), list):
        raise BadRequest('the body has no list "items"; wanted {"items": [...]}')
    _refuse_unknown(whole, known, "the body")
    return whole


def _items(whole: dict[str, Any], max_items: int, known: set[str]):
    entries = whole["items"]
    if len(entries) > max_items:
        raise BadRequest(f"{len(entries)} items in one request; wanted at most {max_items}", "too_many_items", 413)
    seen: dict[str, int] = {}
    for index, entry in enumerate(entries):
        place = f"items[{index}]"
        if not isinstance(entry, dict):
            raise BadRequest(f"{place} is {type(entry).__name__}; wanted an object")
        _refuse_unknown(entry, known, place)
        item_id = _text(entry, place, "id")
        if not item_id or len(item_id) > 256:
            raise BadRequest(f"{place}.id has {len(item_id)} characters; wanted 1 to 256")
        if item_id in seen:
            raise BadRequest(f"{place}.id={item_id!r} is also that of items[{seen[item_id]}]", "duplicate_id")
        seen[item_id] = index
        yield place, entry


def _item(entry: dict[str, Any], place: str, response: str, references: tuple[str, ...]) -> Item:
    domain = _text(entry, place, "domain", optional=True)
    return Item(entry["id"], _text(entry, place, "problem"), response, references, domain)


def _references(entry: dict[str, Any], place: str) -> tuple[str, ...]:
    given = entry.get("references")
    if not isinstance(given, list) or not given:
        raise BadRequest(f"{place}.references is {given!r:.60}; wanted a list of one text or more")
    return tuple(_checked(text, f"{place}.references[{number}]") for number, text in enumerate(given))


def _text(entry: dict[str, Any], place: str, key: str, optional: bool = False) -> Any:
    value = entry.get(key)
    if value is None and optional:
        return None
    if key not in entry:
        raise BadRequest(f"{place}.{key} is missing")
    return _checked(value, f"{place}.{key}")


def _checked(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise BadRequest(f"{place} is {type(value).__name__}; wanted text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as err:
        raise BadRequest(f"{place} holds half a surrogate pair at character {err.start}", "invalid_utf8") from err
    return value


def _refuse_unknown(entry: dict[str, Any], known: set[str], place: str) -> None:
    unknown = sorted(set(entry) - known)
    if unknown:
        raise BadRequest(f"{place} has the key {unknown[0]!r}; wanted only {', '.join(sorted(known))}")
