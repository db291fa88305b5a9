"""NeMo-Aligner's reward client with deadlines, a look at who answers, and the two inputs the stock client does not send.

It works with any server of the protocol; prompt lengths and sample ids go only to one that takes them. A request that
stays unanswered costs its rows their reward (NaN, which the trainer leaves out and counts) and does not hang a rank.
"""

from __future__ import annotations

import http.client
import json
import logging
import time
import urllib.error
import urllib.request
from typing import Any

from rlkd_nemo.aligner.compat import check

check()

import numpy as np
import torch
import torch.distributed as dist
from nemo_aligner.models.nlp.gpt.reward_critic_clients import RemoteGPTRMClient
from nemo_aligner.servers.http_communicator import HTTPCommunicator
from nemo_aligner.utils import parallel_state
from nemo_aligner.utils.distributed import run_if_model_parallel_src
from nemo_aligner.utils.server_utils import FutureResult
from pytriton.client import FuturesModelClient
from pytriton.client.exceptions import PyTritonClientError

from rlkd_nemo.errors import BackendUnavailable, BadReply, ShapeError

log = logging.getLogger(__name__)

# Defaults of `remote_rm`, whose YAML may set them; NeMo-Aligner waits 100 minutes for a server and a week for a reply.
READY_TIMEOUT_S = 300.0
REQUEST_TIMEOUT_S = 1800.0
POLL_S = 1.0
TAKEN = {"tokens": "INT64", "sequence_lengths": "INT64"}
GIVEN = {"rewards": "FP32"}
EXTRA = ("prompt_lengths", "sample_ids")
# Nodes of one job speak to one another, whatever proxy leads out of the cluster.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class GSRMRewardClient(RemoteGPTRMClient):
    """`cfg` is the section `remote_rm`; keys beside NeMo-Aligner's: `ready_timeout_s`, `request_timeout_s`.

    Raises, on every rank alike: BackendUnavailable when no server is ready in time; BadReply when another protocol is
    spoken there. Both name the address.
    """

    def __post_init__(self) -> None:
        model = self.cfg.reward_model
        self.name, self.url = model.name, f"http://{model.ip}:{model.port}"
        self.ready_timeout_s = float(self.cfg.get("ready_timeout_s", READY_TIMEOUT_S))
        self.request_timeout_s = float(self.cfg.get("request_timeout_s", REQUEST_TIMEOUT_S))
        self.pad_to_length = self.cfg.get("pad_to_length")
        self.extra = on_first_rank(lambda: _inspect(self.url, self.name, self.ready_timeout_s))
        client = FuturesModelClient(
            self.url, self.name, init_timeout_s=self.ready_timeout_s, inference_timeout_s=self.request_timeout_s
        )
        self.communicator = HTTPCommunicator()
        self.communicator.connections[self.name] = (model.ip, model.port, client)

    def infer_rm(self, rollout_batch: dict[str, Any]) -> RewardFuture:
        """Rewards to come for `response_tokens` [B, S] and `response_lengths` [B]; float32 [B, 1] on every rank."""
        tokens = rollout_batch["response_tokens"].cpu()
        if self.pad_to_length is not None and tokens.size(-1) > self.pad_to_length:
            raise ShapeError(
                f"responses of {tokens.size(-1)} tokens do not fit remote_rm.pad_to_length={self.pad_to_length}"
            )
        if self.pad_to_length is not None:
            tokens = torch.nn.functional.pad(tokens, (0, self.pad_to_length - tokens.size(-1)))
        data = {
            "tokens": tokens.numpy(),
            "sequence_lengths": rollout_batch["response_lengths"].unsqueeze(1).cpu().numpy(),
        }
        if "prompt_lengths" in self.extra and "prompt_lengths" in rollout_batch:
            data["prompt_lengths"] = rollout_batch["prompt_lengths"].unsqueeze(1).cpu().numpy()
        if "sample_ids" in self.extra and "sample_ids" in rollout_batch:
            data["sample_ids"] = np.char.encode(np.array(rollout_batch["sample_ids"])[:, None], "utf-8")
        return RewardFuture(self, data, run_if_model_parallel_src(self.send, data))

    def send(self, data: dict[str, np.ndarray]) -> Any:
        """The pending answer to one request."""
        return self.communicator.send_data_to_server(server_name=self.name, data=data)


class RewardFuture(FutureResult):
    """One request: asked again while its time lasts, should the server go away; NaN when the time is over."""

    def __init__(self, client: GSRMRewardClient, data: dict[str, np.ndarray], pending: Any) -> None:
        self.client, self.data, self.pending = client, data, pending
        self.until = time.monotonic() + client.request_timeout_s

    def result(self) -> torch.Tensor:
        """float32 [B, 1], on every rank of the model-parallel group. Raises: ShapeError for an answer of another form."""
        answer: list[Any] = [self._wait() if self.pending is not None else None]
        group = parallel_state.get_model_parallel_group()
        if dist.get_world_size(group) > 1:
            dist.broadcast_object_list(answer, parallel_state.get_model_parallel_src_rank(), group=group)
        self.pending = None
        if isinstance(answer[0], Exception):
            raise answer[0]
        return torch.from_numpy(answer[0])

    def _wait(self) -> np.ndarray | Exception:
        rows = len(self.data["tokens"])
        while True:
            left = self.until - time.monotonic()
            try:
                return self._check(self.pending.result(max(left, 0.1)), rows)
            except (PyTritonClientError, TimeoutError, OSError) as error:
                log.warning(
                    "%s: no rewards for %d responses yet: %s", self.client.url, rows, str(error).splitlines()[:1]
                )
            try:
                _wait_ready(self.client.url, self.client.name, max(self.until - time.monotonic(), 0.0))
            except BackendUnavailable as error:
                log.error("%s; %d responses have no reward", error, rows)
                return np.full((rows, 1), np.nan, dtype=np.float32)
            if time.monotonic() >= self.until:
                log.error("%s: no answer in time; %d responses have no reward", self.client.url, rows)
                return np.full((rows, 1), np.nan, dtype=np.float32)
            time.sleep(min(POLL_S, 0.2 * self.client.request_timeout_s))
            self.pending = self.client.send(self.data)

    def _check(self, reply: dict[str, np.ndarray], rows: int) -> np.ndarray | Exception:
        rewards = reply.get("rewards")
        if rewards is None or rewards.shape != (rows, 1) or rewards.dtype != np.float32:
            found = "none" if rewards is None else f"{rewards.dtype} {rewards.shape}"
            return ShapeError(
                f"{self.client.url}: rewards are {found} for {rows} responses; wanted float32 ({rows}, 1). "
                "remote_rm.reward_model must name a server of NeMo-Aligner's protocol"
            )
        return rewards.copy()


def on_first_rank(function: Any) -> Any:
    """`function()` once; its result, or its error, on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return function()
    answer: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            answer = [function()]
        except Exception as error:  # noqa: BLE001 - whatever it is: the other ranks wait for an answer
            answer = [error]
    dist.broadcast_object_list(answer, 0)
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]


def _inspect(url: str, name: str, timeout_s: float) -> tuple[str, ...]:
    """Which of our own inputs the model takes. Raises as the client."""
    _wait_ready(url, name, timeout_s)
    try:
        told = json.loads(_get(f"{url}/v2/models/{name}"))
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


def _wait_ready(url: str, name: str, timeout_s: float) -> None:
    """Return once the model is ready. Raises: BackendUnavailable, after `timeout_s`."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            _get(f"{url}/v2/health/ready")
            _get(f"{url}/v2/models/{name}/ready")
            return
        except (OSError, ValueError, http.client.HTTPException) as error:
            if time.monotonic() >= until:
                raise BackendUnavailable(
                    f"reward server {url} {_wrong(error)} ({name}; {error}) within {timeout_s:g} s; start it, see "
                    "remote_rm.reward_model, or raise remote_rm.ready_timeout_s"
                ) from error
        time.sleep(min(POLL_S, max(until - time.monotonic(), 0.05)))


def _wrong(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return "has no model of this name ready"
    return "is not reachable" if isinstance(error, OSError) else "does not speak HTTP"


def _get(url: str) -> bytes:
    with _OPENER.open(url, timeout=5) as reply:  # a fixed scheme and a host from the config
        return reply.read()
