"""NeMo-Aligner's reward client with deadlines, a look at who answers, and the two inputs the stock client does not send.

It works with any server of the protocol; prompt lengths and sample ids go only to one that takes them. A request that
stays unanswered costs its rows their reward (NaN, which the trainer leaves out and counts) and does not hang a rank. What
asking again cannot repair (another protocol, tensors refused, a server that fails each time) is an error at once.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future
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

from rlkd_nemo.aligner.endpoint import POLL_S, Verdict, inspect, verdict, wait_ready
from rlkd_nemo.config.aligner import read_remote
from rlkd_nemo.errors import BackendUnavailable, BadReply, RlkdError, ShapeError

log = logging.getLogger(__name__)

# How often a server that is ready may fail one and the same request before that counts as its answer.
FAILURES = 5


class GSRMRewardClient(RemoteGPTRMClient):
    """`cfg` is the section `remote_rm`; keys beside NeMo-Aligner's are those of `config.aligner.RemoteRm`.

    Raises: ConfigError for the section. And, on every rank alike, with the address: BackendUnavailable when no server is
        ready in time; BadReply when another protocol is spoken there.
    """

    def __post_init__(self) -> None:
        settings, model, self.pad_to_length = read_remote(self.cfg)
        self.name, self.url = model.name, f"http://{model.ip}:{model.port}"
        self.ready_timeout_s, self.request_timeout_s = settings.ready_timeout_s, settings.request_timeout_s
        self.extra = on_first_rank(lambda: inspect(self.url, self.name, self.ready_timeout_s))
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

    def send(self, data: dict[str, np.ndarray]) -> Future:
        """The pending answer to one request; an error in sending is the answer."""
        try:
            return self.communicator.send_data_to_server(server_name=self.name, data=data)
        except Exception as error:  # noqa: BLE001 - only this rank sends; the others learn of it with the result
            pending: Future = Future()
            pending.set_exception(error)
            return pending


class RewardFuture(FutureResult):
    """One request: asked again while its time lasts, should the server go away; NaN when the time is over."""

    def __init__(self, client: GSRMRewardClient, data: dict[str, np.ndarray], pending: Future | None) -> None:
        self.client, self.data, self.pending = client, data, pending
        self.until = time.monotonic() + client.request_timeout_s

    def result(self) -> torch.Tensor:
        """float32 [B, 1], on every rank of the model-parallel group.

        Raises, on every rank alike: ShapeError for an answer of another form; BadReply for a server that refuses.
        """
        answer: list[Any] = [self._answer()]
        group = parallel_state.get_model_parallel_group()
        if dist.get_world_size(group) > 1:
            dist.broadcast_object_list(answer, parallel_state.get_model_parallel_src_rank(), group=group)
        self.pending = None
        if isinstance(answer[0], Exception):
            raise answer[0]
        return torch.from_numpy(answer[0])

    def _answer(self) -> np.ndarray | Exception | None:
        """The rewards, or the error that every rank of the group raises; None on ranks that asked nothing."""
        if self.pending is None:
            return None
        rows = len(self.data["tokens"])
        try:
            return self._checked(self._wait(self.pending), rows)
        except (BackendUnavailable, TimeoutError) as error:
            log.error("%s: %s; %d responses have no reward", self.client.url, error, rows)
            return np.full((rows, 1), np.nan, dtype=np.float32)
        except RlkdError as error:
            return error
        except Exception as error:  # noqa: BLE001 - the other ranks wait for an answer
            return BadReply(f"{self.client.url}: the request cannot be sent ({type(error).__name__}: {error})")

    def _wait(self, pending: Future) -> dict[str, np.ndarray]:
        """The server's reply. Raises: TimeoutError, BackendUnavailable when the time is over; BadReply."""
        refused = failed = 0
        if pending.done():  # failed, perhaps, while responses were sampled; the server may be back long since
            self.until = time.monotonic() + self.client.request_timeout_s
        while True:
            try:
                return pending.result(max(self.until - time.monotonic(), 0.1))
            except Exception as error:
                kind, said = verdict(error)
                if kind is Verdict.OURS:
                    raise
                # A model that is being loaded again refuses too: twice is meant. A count is of one life of the server.
                refused, failed = refused + (kind is Verdict.REFUSED), failed + (kind is Verdict.FAILED)
                if kind is Verdict.AWAY:
                    refused = failed = 0
                if refused == 2 or failed == FAILURES:
                    how = "refuses the request" if refused == 2 else f"failed the same request {failed} times"
                    raise BadReply(
                        f"{self.client.url}: model {self.client.name} {how}: {said}. Its log has more; "
                        "remote_rm.reward_model must name a server of NeMo-Aligner's reward protocol"
                    ) from error
                log.warning("%s: no rewards for %d responses yet: %s", self.client.url, len(self.data["tokens"]), said)
            wait_ready(self.client.url, self.client.name, max(self.until - time.monotonic(), 0.0))
            if time.monotonic() >= self.until:
                raise TimeoutError(f"no answer within remote_rm.request_timeout_s={self.client.request_timeout_s:g}")
            time.sleep(min(POLL_S * max(failed, 1), 0.2 * self.client.request_timeout_s))
            pending = self.client.send(self.data)

    def _checked(self, reply: dict[str, np.ndarray], rows: int) -> np.ndarray:
        rewards = reply.get("rewards")
        if rewards is None or rewards.shape != (rows, 1) or rewards.dtype != np.float32:
            found = "none" if rewards is None else f"{rewards.dtype} {rewards.shape}"
            raise ShapeError(
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
