"""What `exp_manager.checkpoint_callback_params.monitor` may name: a metric that is there when a checkpoint is saved.

`validation/` and `reward/` are known by name. `loss/` and `rollout/` have what objective and sampling bring along, so
that only the area is checked; `time/` is no measure of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator

from rlkd_nemo.config.schema import CheckpointCallback, Config
from rlkd_nemo.config.tree import nearest

VALIDATION = (
    "accuracy", "accuracy_low", "accuracy_high", "structure", "structure_low", "structure_high", "length_tokens",
    "entropy", "truncated_fraction", "failed",
)  # fmt: skip
REWARD = ("total", "outcome", "structure", "format", "tag", "failed_fraction", "structure_outcome_correlation")
_NAMES = tuple(f"validation/{name}" for name in VALIDATION) + tuple(f"reward/{name}" for name in REWARD)
_OPEN = ("loss/", "rollout/")


def problems(cfg: Config) -> Iterator[str]:
    """A monitor that no checkpoint would ever have a value of."""
    key, name = "exp_manager.checkpoint_callback_params.monitor", cfg.exp_manager.checkpoint_callback_params.monitor
    if name not in _NAMES and not (name.startswith(_OPEN) and name not in _OPEN):
        yield (
            f"{key}={name!r} is no metric of a step, so that no checkpoint could be the best; wanted one of "
            f"{', '.join(_NAMES)}, or one of loss/ or rollout/{nearest(name, _NAMES)}"
        )
    # The default merely finds nothing to compare; whoever named another wants it measured.
    elif (
        name.startswith("validation/")
        and name != CheckpointCallback().monitor
        and not cfg.trainer.rlkd.val_check_interval
    ):
        yield (
            f"{key}={name} is never measured with trainer.rlkd.val_check_interval=0; wanted an interval, or a metric of "
            "training such as reward/total"
        )
