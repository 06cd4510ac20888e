"""The student's trunk in eight-bit products: four times the rate of float32's on a CPU with AVX-512 VNNI, but rough.

Frames are bytes as they are; weights and the outputs of the layers between are rounded to 8 bits. What that shifts on
average is added back (bias correction; Nagel et al. 2019, arXiv:1906.04721).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from aamlib.networks import STACK_SHAPE, NatureDQN, PixelConv2d


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
        exact, rough, scale = states, PixelConv2d.blocks(states), 1 / 255
        with torch.no_grad():
            for module in network.trunk:
                exact = module(exact)
                if isinstance(module, nn.Conv2d | nn.Linear):
                    layer = _Layer(module, scale)
                    rough = rough.flatten(1) if isinstance(module, nn.Linear) else rough
                    shift = (exact - layer(rough, relu=False)).transpose(0, 1).flatten(1).mean(dim=1)
                    layer.bias = shift if layer.bias is None else layer.bias + shift
                    layer.output_scale = scale = max(exact.max().item(), 1e-6) / 255
                    self.layers.append(layer)
                    rough = layer(rough)
            self.layers[-1].output_scale = None

    def __call__(self, states: UInt8[Tensor, "N 4 84 84"]) -> Float[Tensor, "N F"]:
        """The features, float32 (N, 512), without gradient."""
        x = PixelConv2d.blocks(states)
        *convolutions, hidden = self.layers
        for layer in convolutions:
            x = layer(x)
        return hidden(x.flatten(1))


class _Layer:
    """A convolution or linear layer and its ReLU: uint8 in, uint8 out, or float32 without an `output_scale`."""

    def __init__(self, module: nn.Conv2d | nn.Linear, input_scale: float) -> None:
        weight = module.blocks_weight() if isinstance(module, PixelConv2d) else module.weight
        self.bias, self.input_scale, self.output_scale = module.bias, input_scale, None
        self.weight_scale = weight.flatten(1).abs().amax(dim=1).clamp_min(1e-12) / 127  # one per output channel
        rounded = (weight.transpose(0, -1) / self.weight_scale).transpose(0, -1).round().to(torch.int8).contiguous()
        self.zero_points = torch.zeros(len(weight), dtype=torch.int32)
        self.geometry: tuple[Any, ...] = ()
        onednn = torch.ops.onednn
        if isinstance(module, nn.Conv2d):
            stride = 1 if isinstance(module, PixelConv2d) else module.stride[0]
            self.geometry = [stride, stride], [0, 0], [1, 1], 1  # stride, padding, dilation, groups
            self.weight = onednn.qconv_prepack(rounded, self.weight_scale, input_scale, 0, *self.geometry, None)
            self.product = onednn.qconv2d_pointwise
        else:
            self.weight = onednn.qlinear_prepack(rounded, None)
            self.product = onednn.qlinear_pointwise

    def __call__(self, x: UInt8[Tensor, "N ..."], *, relu: bool = True) -> Tensor:
        output_type = torch.float32 if self.output_scale is None else torch.uint8
        return self.product(
            x, self.input_scale, 0, self.weight, self.weight_scale, self.zero_points, self.bias, *self.geometry,
            self.output_scale or 1.0, 0, output_type, "relu" if relu else "none", [], "",
        )  # fmt: skip
