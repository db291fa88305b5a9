"""Waiting until a service answers. No torch."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request

_PAUSE_S, _ANSWER_S = 0.25, 5.0


def await_ready(url: str, deadline_s: float) -> str | None:
    """Ask until the answer is 200.

    Returns: None when it is; else, after `deadline_s`, what was wrong last.
    """
    # Nodes of one job speak to one another, whatever proxy leads out of the cluster.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + deadline_s
    while True:
        try:
            with opener.open(url, timeout=_ANSWER_S):
                return None
        except urllib.error.HTTPError as err:
            wrong = f"{err.code} {err.read(500).decode(errors='replace')}"
        except (OSError, http.client.HTTPException) as err:
            wrong = str(err) or type(err).__name__
        if time.monotonic() + _PAUSE_S > end:
            return wrong
        time.sleep(_PAUSE_S)
