"""What changes from step to step of training: the learning rate, and the share of λ that acts."""

import math

from pipelines.runs.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """The rate of a step, the first being 1: it rises over ``warmup`` steps, and falls from ``decay_from`` on.

    Linear falls in a straight line and cosine along half a cosine, both from the full rate at the first step after
    ``decay_from * total_steps`` to 0 at the one that would follow the last.
    """
    start = config.decay_from * total_steps
    fallen, fall = max(step - 1 - start, 0), total_steps - start
    rate = config.lr
    if config.lr_schedule == "cosine":
        rate = config.lr * (1 + math.cos(math.pi * fallen / fall)) / 2
    elif config.lr_schedule == "linear":
        rate = config.lr * (1 - fallen / fall)
    return rate * min(step / config.warmup, 1.0) if config.warmup else rate


def share_of_lam(config: TrainConfig, step: int) -> float:
    """The part of λ that acts at a step: from 0 at the first to 1 after ``lam_warmup`` of them."""
    return min((step - 1) / config.lam_warmup, 1.0) if config.lam_warmup else 1.0
