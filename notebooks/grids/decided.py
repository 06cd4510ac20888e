"""An acquisition function of one's own, as decided-breakout.toml uses it: chance, where the action matters."""

import math

from aamlib.acquisition import entropy
from aamlib.selections import INDIFFERENT


def decided(logits, *, generator=None):
    """1 where the student is not indifferent, by its mean policy as the expert by its own, else 0; chance breaks ties.

    `logits`: Q / tau under T dropout masks, float (N, T, A). Returns float (N,).
    """
    return (entropy(logits) <= INDIFFERENT * math.log(logits.shape[2])).float()
