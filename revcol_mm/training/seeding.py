"""Seed every training iteration by its number, so that a resumed run draws the same random numbers."""

import random
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner


def seed_everything(*entropy: int) -> None:
    """Seed the generators of Python, NumPy and torch with a hash of the given integers."""
    seeds = np.random.SeedSequence(entropy).generate_state(3)
    random.seed(int(seeds[0]))
    np.random.seed(seeds[1])
    torch.manual_seed(int(seeds[2]))


class SeedHook(Hook):
    """Seeds the random generators before every iteration with the run's seed, the rank and the iteration."""

    priority = 'VERY_HIGH'  # before any hook that draws random numbers

    def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        seed_everything(runner.seed, get_rank(), runner.iter)
