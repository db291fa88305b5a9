"""Record which tokens of the main job's updates have a gradient, for `benchmarks/token_logprobs.py`.

Runs the quickstart, whole and unchanged, and notes for every micro-batch of reinforcement learning on rank 0 how long
each response is and which of its tokens' log-probs receive a gradient that is not zero.

    python benchmarks/record_batches.py [objective=grpo] exp_manager.exp_dir=results/recorded

leaves `recorded_batches.json` in the run directory; `benchmarks/recorded_{trrd,grpo}.json` are two such files.
"""

from __future__ import annotations

import json
from pathlib import Path

from rlkd_nemo.config.load import cli


def watch(actor_class: type, batches: list[dict]) -> None:
    """Have every update of `actor_class` note its micro-batches in `batches`."""
    plain = actor_class.update

    def update(self, batch, objective, **how):
        def watched(log_probs, mask, fields):
            if log_probs.requires_grad and "advantages" in fields:  # not the supervised stages
                log_probs.register_hook(lambda grad: note(self.updates + 1, mask, grad))
            return objective(log_probs, mask, fields)

        return plain(self, batch, watched, **how)

    def note(number, mask, grad):
        rows = [
            "".join("1" if live else "0" for live in of_row[: int(length)])
            for of_row, length in zip((grad != 0).tolist(), mask.sum(-1).tolist())
        ]
        batches.append({"update": number, "rows": rows})

    actor_class.update = update


def main(cfg):
    """On every rank; rank 0 writes."""
    from rlkd_nemo.engine.actor import RLKDActor
    from rlkd_nemo.quickstart import run

    batches: list[dict] = []
    watch(RLKDActor, batches)
    run(cfg)
    import torch.distributed as dist

    if dist.get_rank() == 0:
        # One character a token: 1 where the loss pulls at it. Newlines keep differences readable.
        lines = ",\n".join(json.dumps(batch) for batch in batches)
        name = type(cfg.objective).__name__.lower()
        path = Path(cfg.exp_manager.exp_dir) / "recorded_batches.json"
        path.write_text(f'{{"objective": "{name}", "seed": {cfg.model.seed}, "batches": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    cli(main, default="quickstart", ranks=lambda cfg: cfg.trainer.devices, description=__doc__)
