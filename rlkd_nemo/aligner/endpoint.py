"""Is there a reward model of NeMo-Aligner's protocol? Asked over plain HTTP (KServe's v2 interface), with deadlines.

What time may heal (nobody there yet, a server that is still loading) is waited for. What it cannot (something that is no
Triton, a gateway that wants a login, a model of another name or other tensors) is told at once. Standard library only.
"""

from __future__ import annotations

import enum
import http.client
import json
import time
import urllib.error
import urllib.request

from rlkd_nemo.errors import BackendUnavailable, BadReply

POLL_S = 1.0
# A server is ready a moment before its models are loaded; one that lacks ours for longer will not get it.
MODEL_GRACE_S = 30.0
TAKEN = {"tokens": "INT64", "sequence_lengths": "INT64"}
GIVEN = {"rewards": "FP32"}
EXTRA = ("prompt_lengths", "sample_ids")
# Refusals that are about the moment: Triton says 400 until it is ready; 408, 425 and 429 ask for patience.
PASSING = (400, 408, 425, 429)
# Nodes of one job speak to one another, whatever proxy leads out of the cluster.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Verdict(enum.Enum):
    """What became of a request to Triton.

    AWAY: no answer, as of a server that ended; FAILED: its model raised an error; REFUSED: it does not take these tensors;
    OURS: nothing was asked, the request itself is wrong.
    """

    AWAY = "away"
    FAILED = "failed"
    REFUSED = "refused"
    OURS = "ours"


def verdict(error: BaseException) -> tuple[Verdict, str]:
    """What PyTriton's client raised, and the server's own words on one line.

    PyTriton wraps Triton's HTTP status in a cause, and the traceback of a model's function in the text.
    """
    code = getattr(error.__cause__, "status", lambda: None)()
    said = _last_words(str(error))
    if code is not None and str(code).isdigit():
        return (Verdict.REFUSED if is_refusal(int(code)) or int(code) == 400 else Verdict.FAILED), said
    if isinstance(error, (TimeoutError, OSError)) or type(error).__name__ in _AWAY:
        return Verdict.AWAY, said
    return Verdict.OURS, said


# PyTriton's, by name: nothing of it is imported here; and that of futures, until Python 3.11 one of their own.
_AWAY = (
    "PyTritonClientTimeoutError", "PyTritonClientModelUnavailableError", "PyTritonClientQueueFullError", "TimeoutError",
)  # fmt: skip


def _last_words(text: str) -> str:
    """The error at the end of a traceback, or the text; one line."""
    lines = [line for line in text.split("\n\n\nAt:")[0].splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "no message"


def is_refusal(status: int) -> bool:
    """Whether an HTTP status says that asking again is of no use."""
    return 400 <= status < 500 and status not in PASSING


def inspect(url: str, name: str, timeout_s: float) -> tuple[str, ...]:
    """Which of our own inputs the model takes, once it is ready. Raises: as `wait_ready`; BadReply for other tensors."""
    wait_ready(url, name, timeout_s)
    try:
        told = json.loads(_ask(f"{url}/v2/models/{name}"))
        inputs = {part["name"]: part["datatype"] for part in told["inputs"]}
        outputs = {part["name"]: part["datatype"] for part in told["outputs"]}
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
        raise BadReply(
            f"{url}: model {name} does not describe itself as Triton's do ({error}); see remote_rm"
        ) from error
    for kind, found, wanted in (("inputs", inputs, TAKEN), ("outputs", outputs, GIVEN)):
        if any(found.get(key) != datatype for key, datatype in wanted.items()):
            raise BadReply(
                f"{url}: model {name} has {kind} {found}; wanted {wanted} among them. "
                "remote_rm.reward_model must name a reward model, not another server of this network"
            )
    return tuple(key for key in EXTRA if key in inputs)


def wait_ready(url: str, name: str, timeout_s: float) -> None:
    """Return once the model is ready.

    Raises: BackendUnavailable after `timeout_s` without a server that is ready; BadReply, at once, for what answers there
        but is none, and after `MODEL_GRACE_S` for a ready server without the model.
    """
    until = time.monotonic() + timeout_s
    lacking_since: float | None = None
    while True:
        try:
            _ask(f"{url}/v2/health/ready")
        except (OSError, ValueError, http.client.HTTPException) as error:
            _refuse_for_good(url, name, error)
            lacking_since, trouble = None, error
        else:
            try:
                _ask(f"{url}/v2/models/{name}/ready")
                return
            except (OSError, ValueError, http.client.HTTPException) as error:
                if getattr(error, "code", None) != 404:
                    _refuse_for_good(url, name, error)
                now, trouble = time.monotonic(), error
                lacking_since = now if lacking_since is None else lacking_since
                if isinstance(error, urllib.error.HTTPError) and now - lacking_since >= min(MODEL_GRACE_S, timeout_s):
                    raise BadReply(
                        f"{url} is ready and has no model {name}; see remote_rm.reward_model.name"
                    ) from error
        if time.monotonic() >= until:
            raise BackendUnavailable(
                f"reward server {url} {_wrong(trouble)} ({name}; {trouble}) within {timeout_s:g} s; start it, see "
                "remote_rm.reward_model, or raise remote_rm.ready_timeout_s"
            ) from trouble
        time.sleep(min(POLL_S, max(until - time.monotonic(), 0.05)))


def _refuse_for_good(url: str, name: str, error: Exception) -> None:
    if isinstance(error, urllib.error.HTTPError) and is_refusal(error.code):
        raise BadReply(
            f"{url} answers HTTP {error.code} {error.reason} and is no Triton server that lets us in; wanted model {name} "
            "of NeMo-Aligner's reward protocol, which knows neither login nor token. See remote_rm.reward_model"
        ) from error
    # A server that goes away in mid-reply is a ConnectionError as well.
    if isinstance(error, http.client.BadStatusLine) and not isinstance(error, ConnectionError):
        raise BadReply(
            f"{url} does not speak HTTP (it says {str(error)[:80]!r}); wanted the Triton server of model {name}. "
            "See remote_rm.reward_model.ip and .port"
        ) from error


def _wrong(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"is not ready (HTTP {error.code})"
    return "is not reachable" if isinstance(error, OSError) else "gives no whole answer"


def _ask(url: str) -> bytes:
    with _OPENER.open(url, timeout=5) as reply:  # a fixed scheme and a host from the config
        return reply.read()
