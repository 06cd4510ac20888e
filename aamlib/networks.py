"""Nature-DQN networks: the expert's, and the student's with MC dropout.

Both map stacks of frames, uint8 (N, 4, 84, 84), to Q-values, float32 (N, A). They compute with the frames' 21 × 21
*blocks* of 4 × 4 pixels (*space to depth*), and take these too, uint8 (N, 16, 4, 21, 21), as the pool keeps them. In
blocks, D frames in a row, (N, 16, D, 21, 21), stand for the D − 3 states that end with one of them: N · (D − 3) states.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

States = UInt8[Tensor, "_ ..."]  # stacks of frames, or blocks

STACK_SHAPE = (4, 84, 84)
BLOCKS_SHAPE = (16, 4, 21, 21)
N_FEATURES = 512
FORWARD_BATCH = 256  # states per forward pass: with more, memory is returned and asked for again at each pass


def space_to_depth(frames: UInt8[Tensor, "*N 84 84"]) -> UInt8[Tensor, "*N 441 16"]:
    """Each frame's 21 × 21 blocks of 4 × 4 pixels."""
    four_pixels = frames.contiguous().view(torch.int32).unflatten(-2, (21, 4))  # block, its row, block
    return _copy(four_pixels.transpose(-1, -2)).view(torch.uint8).flatten(-3, -2)


def depth_to_space(blocks: UInt8[Tensor, "*N 441 16"]) -> UInt8[Tensor, "*N 84 84"]:
    """The frames that `space_to_depth` was given."""
    four_pixels = blocks.contiguous().view(torch.int32).unflatten(-2, (21, 21))
    return _copy(four_pixels.transpose(-1, -2)).view(torch.uint8).flatten(-3, -2)


def series_of(frames: UInt8[Tensor, "N D 441 16"]) -> UInt8[Tensor, "N 16 D 21 21"]:
    """Frames in blocks, each block as the 16 channels of one position; channels last in memory, nothing is copied."""
    return frames.unflatten(2, (21, 21)).permute(0, 4, 1, 2, 3)


def _copy(x: Tensor) -> Tensor:
    """In the order of its dimensions; `contiguous` leaves an empty tensor as it is, which can then not be viewed."""
    return x.clone(memory_format=torch.contiguous_format)


def as_blocks(states: States) -> UInt8[Tensor, "N 16 D 21 21"]:
    """States in blocks, given as stacks of frames or so already. Raises ValueError for anything else."""
    if states.dtype == torch.uint8 and states.shape[1:] == STACK_SHAPE:
        return series_of(space_to_depth(states))
    # A series may be longer than the four frames of a stack.
    if states.dtype != torch.uint8 or states.dim() != 5 or states[:, :, : STACK_SHAPE[0]].shape[1:] != BLOCKS_SHAPE:
        raise ValueError(f"states are {states.dtype} {tuple(states.shape)}; give uint8 stacks (N, 4, 84, 84).")
    return states


def begins_empty(states: States) -> Bool[Tensor, " N"]:
    """Whether the oldest frame of each state is empty, as at a game's start.

    Of blocks with more frames than one state's, which have none of before a game, no state's is.
    """
    if states.shape[1:] == STACK_SHAPE:
        return states[:, 0].flatten(1).any(dim=1).logical_not()
    n_states = len(states) * (states.shape[2] - STACK_SHAPE[0] + 1)
    if n_states > len(states):
        return torch.zeros(n_states, dtype=torch.bool)
    return states[:, :, 0].flatten(1).any(dim=1).logical_not()


class PixelConv2d(nn.Conv2d):
    """The first convolution, 8×8 with stride 4, of uint8 stacks taken as pixels in [0, 1].

    It is computed as one of 2×2 blocks of 4×4 pixels and four frames: the same products, but with 16 input channels in
    place of one, and the pixels are put in order while they are still bytes. Of frames in a row, each is read once for
    the four states that it belongs to.
    """

    def __init__(self, out_channels: int, *, bias: bool) -> None:
        super().__init__(4, out_channels, kernel_size=8, stride=4, bias=bias)

    def forward(self, states: States) -> Float[Tensor, "M O 20 20"]:
        """Sums of products of stacks (N, 4, 84, 84) or blocks (N, 16, D, 21, 21), channels last in memory."""
        weight = self.blocks_weight().contiguous(memory_format=torch.channels_last_3d)
        kind = states.device.type  # pixels are converted once, not to float32 first
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        return one_by_one(F.conv3d(as_blocks(states).to(dtype), weight, self.bias))

    def blocks_weight(self) -> Float[Tensor, "O 16 4 2 2"]:
        """The weights of pixels as bytes, put in the order of the blocks."""
        weight = self.weight.unflatten(3, (2, 4)).unflatten(2, (2, 4))  # channel, frame, block, row, block, pixel
        return weight.permute(0, 3, 5, 1, 2, 4).flatten(1, 2) / 255


def one_by_one(outputs: Shaped[Tensor, "N O S H W"]) -> Shaped[Tensor, "M O H W"]:
    """The outputs for S states of each of N series, as those of N · S states; nothing is copied."""
    return outputs.transpose(1, 2).flatten(0, 1)


class NatureDQN(nn.Module):
    """The network of Mnih et al., Nature 2015: three convolutions, one hidden layer of 512 units, Q-values.

    Parameters
    ----------
    n_actions:
        Number of Q-values, A.
    normalise:
        Normalise each layer's output over channels and positions before its ReLU, as PQN needs it
        (Gallici et al., arXiv:2407.04811). `GroupNorm(1, C)` is layer normalisation with one scale per channel; unlike
        `LayerNorm((C, H, W))` it keeps the channels-last layout, in which convolutions on a CPU are fastest.
    conv_bias:
        Give the convolutions a bias, as Stable-Baselines3 does; the study had none.
    """

    game: str | None = None  # on which an expert was trained, where its file says it

    def __init__(self, n_actions: int, *, normalise: bool = False, conv_bias: bool = False) -> None:
        super().__init__()
        self.n_actions = n_actions

        def norm(channels: int) -> nn.Module:
            return nn.GroupNorm(1, channels) if normalise else nn.Identity()

        self.trunk = nn.Sequential(
            PixelConv2d(32, bias=conv_bias), norm(32), nn.ReLU(),  # it gets a view: in place its gradient is slow
            nn.Conv2d(32, 64, 4, stride=2, bias=conv_bias), norm(64), nn.ReLU(inplace=True),
            nn.Conv2d(64, 64, 3, bias=conv_bias), norm(64), nn.Flatten(),
            nn.ReLU(inplace=True),  # flat, as its gradient comes from the next layer
            nn.Linear(64 * 7 * 7, N_FEATURES), norm(N_FEATURES), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.head = nn.Linear(N_FEATURES, n_actions)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, states: States) -> Float[Tensor, "N A"]:
        """Q-values, float32 (N, A). Raises ValueError for other states."""
        return self.head(self.trunk(states)).float()


class MCDropoutDQN(NatureDQN):
    """The student (Actor-Mimic network): dropout between the hidden layer and the Q-values.

    `forward` drops units as `train()` / `eval()` say. `q_samples` always does: it is Monte Carlo dropout
    (Gal & Ghahramani 2016, arXiv:1506.02142). Dropout acts after the trunk only, so the trunk runs once per state.

    Parameters
    ----------
    n_actions:
        Number of Q-values, A.
    dropout:
        Probability that a hidden unit is dropped, in [0, 1).
    """

    def __init__(self, n_actions: int, *, dropout: float = 0.3) -> None:
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout = {dropout} is out of range; give a probability of at least 0 and below 1.")
        super().__init__(n_actions)
        self.dropout = dropout

    def forward(self, states: States, trunk: Callable[[Tensor], Tensor] | None = None) -> Float[Tensor, "N A"]:
        """Q-values, float32 (N, A); with dropout in training mode. `trunk` as for `q_samples`."""
        features = F.dropout((trunk or self.trunk)(states), self.dropout, self.training)
        return self.head(features).float()

    def sample_heads(self, n_samples: int, generator: torch.Generator | None = None) -> Float[Tensor, "T A F"]:
        """Draw T dropout masks and return the Q-layer's weights under each, (T, A, 512).

        Dropping inputs of a linear layer is the same as zeroing their weights: T masked heads are one matrix product.
        """
        weight = self.head.weight.detach()[:, None]
        kept = torch.rand(n_samples, N_FEATURES, generator=generator).to(weight.device) >= self.dropout
        return (weight * kept / (1 - self.dropout)).transpose(0, 1)  # in memory (A, T, 512), as q_samples takes them

    def q_samples(
        self,
        states: States,
        n_samples: int = 10,
        *,
        heads: Float[Tensor, "T A F"] | None = None,
        generator: torch.Generator | None = None,
        trunk: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "N T A"]:
        """Q-values of T dropout passes, float32 (N, T, A), without gradient; the masks are shared by all N states.

        Parameters
        ----------
        states:
            Stacks of frames, uint8 (N, 4, 84, 84), or their blocks, (N, 16, 4, 21, 21).
        n_samples:
            T, when `heads` is not given.
        heads:
            Masked weights from `sample_heads`, to score many batches under the same masks.
        generator:
            Source of the masks; torch's global one when None.
        trunk:
            Maps the states to features (N, 512) in place of the student's own trunk, as those of `trunks` do.
        """
        with torch.no_grad():
            if heads is None:
                heads = self.sample_heads(n_samples, generator)
            n_heads, n_actions, _ = heads.shape
            weight, bias = heads.transpose(0, 1).flatten(0, 1), self.head.bias.repeat_interleave(n_heads)
            features = (trunk or self.trunk)(states)
            q_values = torch.addmm(bias[:, None], weight, features.T).float()  # (A·T, N), as acquisitions take them
            return q_values.view(n_actions, n_heads, -1).permute(2, 1, 0)
