"""The student's trunk in eight-bit products: four times the rate of float32's on a CPU with AVX-512 VNNI, but rough.

Frames are bytes as they are; weights and the outputs of the layers between are rounded to 8 bits. So that this shifts
less, the outputs' channels are brought nearer to one range, at the cost of the weights' (as in SmoothQuant, Xiao et al.
2022, arXiv:2211.10438), and what it shifts on average is added back (bias correction, Nagel et al. 2019,
arXiv:1906.04721).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from aamlib.networks import STACK_SHAPE, NatureDQN, PixelConv2d

# How far each channel has a range of its own: 0, all of a layer share one; 1, whatever that does to the weights. Of 0,
# 0.25, 0.5, 0.75 and 1, this one's errors were about the smallest on five trained students of Pong and Breakout.
_EQUALISED = 0.75


@functools.cache
def is_fast(device: str = "cpu") -> bool:
    """Whether products of bytes are fast here: on a CPU with AVX-512 VNNI."""
    if torch.device(device).type != "cpu":
        return False
    try:  # what tells it, and the products themselves, are no public parts of torch
        if not torch.cpu._is_vnni_supported():
            return False
        Int8Trunk(NatureDQN(1), torch.zeros(2, *STACK_SHAPE, dtype=torch.uint8))
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True


class Int8Trunk:
    """Maps states to a network's hidden features, as its `features` does, in eight-bit products.

    The network's weights are taken as they are now; when they change, make another.

    Parameters
    ----------
    network:
        On the CPU, and without normalisation.
    states:
        uint8 (N, 4, 84, 84), a few hundred: their largest activations set the scales, and what rounding shifts is
        averaged over them.

    Raises ValueError for a network with normalisation.
    """

    def __init__(self, network: NatureDQN, states: UInt8[Tensor, "N 4 84 84"]) -> None:
        if any(isinstance(module, nn.GroupNorm) for module in network.trunk):
            raise ValueError("the network normalises its layers' outputs, as experts do; give a student.")
        self.layers: list[_Layer] = []
        exact, rough = states, PixelConv2d.blocks(states)
        scales = torch.tensor([1 / 255])  # of each input channel: what 1 stands for
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            for module in network.trunk:
                exact = module(exact)
                if isinstance(module, nn.Conv2d | nn.Linear):
                    is_last = isinstance(module, nn.Linear)
                    outputs = exact.transpose(0, 1).flatten(1)  # (C, values)
                    output_scales = torch.ones(len(outputs)) if is_last else _scales(outputs)
                    layer = _Layer(module, scales, output_scales)
                    rough = rough.flatten(1) if is_last else rough
                    products = layer(rough, torch.float32, "none").transpose(0, 1).flatten(1)
                    layer.bias = (outputs / output_scales[:, None] - products).mean(dim=1)
                    rough, scales = layer(rough), output_scales
                    self.layers.append(layer)

    def __call__(self, states: UInt8[Tensor, "N 4 84 84"]) -> Float[Tensor, "N F"]:
        """The features, float32 (N, 512), without gradient."""
        x = PixelConv2d.blocks(states)
        *convolutions, hidden = self.layers
        for layer in convolutions:
            x = layer(x)
        return hidden(x.flatten(1), torch.float32)


def _scales(outputs: Float[Tensor, "C M"]) -> Float[Tensor, " C"]:
    """What a byte's 1 stands for in each channel."""
    peaks = outputs.amax(dim=1).clamp_min(1e-6)
    highest = peaks.max()
    return peaks.clamp_min(1e-3 * highest) ** _EQUALISED * highest ** (1 - _EQUALISED) / 255


class _Layer:
    """A convolution or linear layer from bytes to bytes, which stand for multiples of their channel's scale."""

    def __init__(
        self, module: nn.Conv2d | nn.Linear, scales: Float[Tensor, " I"], output_scales: Float[Tensor, " C"]
    ) -> None:
        weight = module.blocks_weight() if isinstance(module, PixelConv2d) else module.weight
        kernel = [1] * (weight.dim() - 2)
        weight = weight * scales.repeat_interleave(weight.shape[1] // len(scales)).view(1, -1, *kernel)
        weight = weight / output_scales.view(-1, 1, *kernel)  # from bytes to bytes
        self.weight_scale = weight.flatten(1).abs().amax(dim=1).clamp_min(1e-12) / 127  # one per output channel
        rounded = (weight / self.weight_scale.view(-1, 1, *kernel)).round().to(torch.int8).contiguous()
        self.bias: Tensor | None = None  # of the products, in multiples of the output's scales
        self.zero_points = torch.zeros(len(weight), dtype=torch.int32)
        self.geometry: tuple[Any, ...] = ()
        onednn = torch.ops.onednn
        if isinstance(module, nn.Conv2d):
            stride = 1 if isinstance(module, PixelConv2d) else module.stride[0]
            self.geometry = [stride, stride], [0, 0], [1, 1], 1  # stride, padding, dilation, groups
            self.weight = onednn.qconv_prepack(rounded, self.weight_scale, 1.0, 0, *self.geometry, None)
            self.product = onednn.qconv2d_pointwise
        else:
            self.weight = onednn.qlinear_prepack(rounded, None)
            self.product = onednn.qlinear_pointwise

    def __call__(
        self, x: UInt8[Tensor, "N ..."], output: torch.dtype = torch.uint8, activation: str = "relu"
    ) -> Tensor:
        return self.product(
            x, 1.0, 0, self.weight, self.weight_scale, self.zero_points, self.bias, *self.geometry,
            1.0, 0, output, activation, [], "",
        )  # fmt: skip
