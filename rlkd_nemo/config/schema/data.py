"""`data`: supervised batches and prompt streams."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Data:
    """SFT batches and prompt streams."""

    global_batch_size: int = 32  # SFT: sequences an update
    num_paths: int | None = None  # SFT: so many fixed examples, repeated; null: fresh ones for ever
    strategies: list[str] = field(default_factory=lambda: ["post"])  # SFT: orders of the paths (task)
    noise: float = 0.0  # SFT: probability that a sub-answer is wrong (task)
    train_difficulty: str = "3-4"
    validation_difficulty: str | None = None  # null: as train
    shuffle_seed: int = 0
