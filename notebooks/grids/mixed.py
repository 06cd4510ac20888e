"""An acquisition function of one's own, as mixed-pong.toml uses it: half chance, half `decided`'s choice."""

import torch
from decided import decided

BY_CHANCE = 0.05  # of the pool: half of the 10 % that are asked about


def mixed(logits, *, generator=None):
    """2 for the states that chance alone draws from all, else as `decided`; chance breaks ties.

    `logits`: Q / tau under T dropout masks, float (N, T, A). Returns float (N,).
    """
    drawn = torch.rand(len(logits), generator=generator) < BY_CHANCE
    return torch.where(drawn.to(logits.device), 2.0, decided(logits))
