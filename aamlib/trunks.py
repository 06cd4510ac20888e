"""The student's trunk made ready for many states: weights packed once, ReLUs within the products, and no gradient.

`PackedTrunk` is exact. `Int8Trunk` is about twice as fast on many CPUs, but rough: frames are bytes as they are;
weights and the outputs of the layers between are rounded to 8 bits, the weights more coarsely where torch reports no
AVX-512 VNNI. So that this shifts less, the outputs' channels are brought nearer to one range, at the cost of the
weights' (as in SmoothQuant, Xiao et al. 2022, arXiv:2211.10438), and what it shifts on average is added back (bias
correction, Nagel et al. 2019, arXiv:1906.04721). `Int16Trunk` makes numbers of 16 bits of two bytes each, and is nearly
exact: with AMX, whose products are of bytes or of bfloat16 alone, it is about twice as fast as float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn

from aamlib.networks import (
    BLOCKS_SHAPE,
    FORWARD_BATCH,
    STACK_SHAPE,
    NatureDQN,
    PixelConv2d,
    States,
    as_blocks,
    one_by_one,
)
from aamlib.precision import TRIAL_BATCH, fastest, fastest_precision, reduced_precision

Trunk = Callable[[States], Float[Tensor, "N F"]]


def packed_trunk(network: NatureDQN) -> Trunk:
    """A `PackedTrunk` of the network's weights as they are now, or where torch cannot pack them, its `trunk`."""
    if next(network.parameters()).device.type == "cpu" and torch.backends.mkldnn.is_available():
        try:  # the products are no public part of torch
            return PackedTrunk(network)
        except (AttributeError, RuntimeError, TypeError):
            pass
    return network.trunk


class PackedTrunk:
    """Maps states to a network's hidden features, as its `trunk` does, in the precision set around.

    The network's weights are taken as they are now, in the precision that is set as they are taken; when they change,
    make another. The network is on the CPU. Raises ValueError for one with normalisation.
    """

    def __init__(self, network: NatureDQN) -> None:
        reduced = torch.is_autocast_enabled("cpu")
        self.dtype = torch.get_autocast_dtype("cpu") if reduced else torch.float32
        with torch.no_grad():
            convolutions, (hidden, weight) = _layers(network)
            self.convolutions = [_Convolution(module, kernel.to(self.dtype)) for module, kernel in convolutions]
            # The order in which oneDNN wants this one is the same for all but the smallest batches.
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(self.dtype), FORWARD_BATCH)
            self.bias = hidden.bias.to(self.dtype, copy=True)
        self(torch.zeros(1, *BLOCKS_SHAPE, dtype=torch.uint8))  # fails here, where torch cannot pack

    def __call__(self, states: States) -> Float[Tensor, "N F"]:
        """The features, (N, 512)."""
        with torch.no_grad():
            x = as_blocks(states).to(self.dtype)
            for convolution in self.convolutions:
                x = convolution(x)
            return torch.ops.mkldnn._linear_pointwise(_flatten(x), self.weight, self.bias, "relu", [], "")


class _Convolution:
    """A convolution and its ReLU in one.

    The order in which oneDNN wants the weights depends on the images' size and on how many they are. In another they
    would be put in order anew at each call, so they are packed once for each shape.
    """

    def __init__(self, module: nn.Conv2d, weight: Tensor) -> None:
        strides, padding, dilation = _geometry(module, weight)
        self.geometry = padding, strides, dilation, 1  # the last: groups
        self.bias = None if module.bias is None else module.bias.to(weight.dtype, copy=True)
        layout = torch.channels_last_3d if weight.dim() == 5 else torch.channels_last
        self.weight = weight.clone(memory_format=layout)
        self.packed: dict[torch.Size, Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape not in self.packed:
            pack = torch.ops.mkldnn._reorder_convolution_weight
            self.packed[x.shape] = pack(self.weight, *self.geometry, list(x.shape))
        weight = self.packed[x.shape]
        x = torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *self.geometry, "relu", [], "")
        return one_by_one(x) if x.dim() == 5 else x


@functools.cache
def int8_works(device: str) -> bool:
    """Whether `Int8Trunk` can be made here, and products of bytes do not overflow."""
    if torch.device(device).type != "cpu":
        return False
    white, ones = torch.full((2, 64), 255, dtype=torch.uint8), torch.ones(32, 64)
    try:  # these products are no public part of torch
        with torch.random.fork_rng(devices=[]):
            Int8Trunk(NatureDQN(1), torch.zeros(2, *STACK_SHAPE, dtype=torch.uint8))
            sums = ByteLayer(nn.Linear(64, 32), ones, torch.ones(1), torch.ones(32))(white, torch.float32)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.allclose(sums, torch.tensor(255.0 * 64), rtol=0.01)


@functools.cache
def int8_is_fast(device: str) -> bool:
    """Whether an `Int8Trunk` works, and is faster than one in the fastest precision: a fraction of a second's trial."""
    if not int8_works(device):
        return False
    states = torch.zeros(TRIAL_BATCH, *STACK_SHAPE, dtype=torch.uint8)
    with torch.random.fork_rng(devices=[]), reduced_precision(fastest_precision(device)):
        network = NatureDQN(1)
        exact, rough = packed_trunk(network), Int8Trunk(network, states[:2])
        return fastest({"exact": lambda: exact(states), "rough": lambda: rough(states)}) == "rough"


@functools.cache
def int16_is_fast(device: str) -> bool:
    """Whether an `Int16Trunk` works, and is faster than float32: with AMX."""
    try:  # neither what the processor has, nor sums of products are public parts of torch
        if not (int8_works(device) and torch.cpu._is_amx_tile_supported()):
            return False
        with torch.random.fork_rng(devices=[]):
            Int16Trunk(NatureDQN(1), torch.zeros(2, *STACK_SHAPE, dtype=torch.uint8))
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True


class Int8Trunk:
    """Maps states to a network's hidden features, as its `trunk` does, in eight-bit products.

    The network's weights are taken as they are now; when they change, make another.

    Parameters
    ----------
    network:
        On the CPU, and without normalisation.
    states:
        uint8 (N, 4, 84, 84) or their blocks, a few hundred: their largest activations set the scales, and what rounding
        shifts is averaged over them.

    Raises ValueError for a network with normalisation.
    """

    def __init__(self, network: NatureDQN, states: States) -> None:
        self.layers: list[ByteLayer | TwoByteLayer] = []
        exact = rough = as_blocks(states)
        scales = torch.ones(1)  # of each input channel: what 1 stands for
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            convolutions, hidden = _layers(network)
            for module, weight in (*convolutions, hidden):
                if is_last := isinstance(module, nn.Linear):
                    exact, rough = exact.flatten(1), _flatten(rough)
                exact = module(exact)
                outputs = exact.transpose(0, 1).flatten(1)  # (C, values)
                output_scales = torch.ones(len(outputs)) if is_last else self._scales(outputs)
                layer = self._layer(module, weight, scales, output_scales)
                products = layer(rough, torch.float32, "none").transpose(0, 1).flatten(1)
                layer.bias = outputs.mean(dim=1) / output_scales - products.mean(dim=1)
                self.layers.append(layer)
                if not is_last:
                    exact, rough, scales = exact.relu_(), layer(rough), output_scales

    _peak = 255  # what stands for the largest activation of those states
    # How far each channel has a range of its own: 0, all of a layer share one; 1, whatever that does to the weights. Of
    # 0, 0.25, 0.5, 0.75 and 1, this one's errors were about the smallest on five trained students of Pong and Breakout.
    _equalised = 0.75

    def _layer(self, *arguments: Any) -> ByteLayer | TwoByteLayer:
        return ByteLayer(*arguments)

    def _scales(self, outputs: Float[Tensor, "C M"]) -> Float[Tensor, " C"]:
        """What a 1 stands for in each channel."""
        peaks = outputs.amax(dim=1).clamp_min(1e-6)
        highest = peaks.max()
        return peaks.clamp_min(1e-3 * highest) ** self._equalised * highest ** (1 - self._equalised) / self._peak

    def __call__(self, states: States) -> Float[Tensor, "N F"]:
        """The features, float32 (N, 512)."""
        x = as_blocks(states)
        *convolutions, hidden = self.layers
        for layer in convolutions:
            x = layer(x)
        return hidden(_flatten(x), torch.float32)


class Int16Trunk(Int8Trunk):
    """As `Int8Trunk`, but nearly exact, in numbers of 16 bits: a product of two is put together from those of bytes.

    It needs AVX-512 VNNI or AMX: without, sums of such bytes would overflow.
    """

    _peak = 40_000  # of 65,535: other states may have larger ones, even by more in a channel that those leave dead
    _equalised = 0

    def _layer(self, *arguments: Any) -> TwoByteLayer:
        return TwoByteLayer(*arguments)


class ByteLayer:
    """A convolution or linear layer from bytes to bytes, which stand for multiples of their channel's scale.

    Parameters
    ----------
    module:
        Tells the kind and the stride.
    weight:
        float (O, I, ...), used in place of the module's; I is even.
    scales, output_scales:
        What a byte's 1 stands for in the channels of what comes in, float (C,), I being a multiple of C, and out, (O,).
    """

    def __init__(self, module: nn.Module, weight: Tensor, scales: Tensor, output_scales: Tensor) -> None:
        weight = _between_bytes(weight, scales, output_scales)
        largest = weight.abs()
        if not torch.cpu._is_vnni_supported():
            # Products of two inputs are added in 16 bits. So two weights, rounded, add to 128 at most: 128 · 255 fits.
            largest = torch.stack([weight, -weight]).clamp_min(0).unflatten(2, (-1, 2)).sum(dim=3).amax(dim=0)
        weight_scale = _largest_of_outputs(largest) / 127
        self.product = _Product(module, _rounded(weight, weight_scale), weight_scale)
        self.bias: Tensor | None = None  # of the products, in multiples of the output's scales

    def __call__(
        self, x: UInt8[Tensor, "N ..."], output: torch.dtype = torch.uint8, activation: str = "relu"
    ) -> Tensor:
        """The outputs of `x`, which has its channels last in memory: (N, O, ...), as bytes or float32."""
        return self.product(x, self.bias, output, activation)


class TwoByteLayer:
    """As a `ByteLayer`, but each number is two bytes, one after the other as two channels; pixels are one.

    (256 a + b) (256 w + v) = 65536 a w + 256 (a v + b w) + b v: the last part is left out, and its mean is in the bias.
    """

    def __init__(self, module: nn.Module, weight: Tensor, scales: Tensor, output_scales: Tensor) -> None:
        weight = _between_bytes(weight, scales, output_scales)
        weight_scale = _largest_of_outputs(weight.abs()) / (127 * 256)
        rounded = _rounded(weight, weight_scale)
        high = (rounded / 256).round().clamp(-127, 127)
        low = (rounded - 256 * high).clamp(-128, 127)

        def pair(of_lower: Tensor, of_higher: Tensor) -> Tensor:  # as the bytes of a number lie in memory
            return torch.stack([of_lower, of_higher], dim=2).flatten(1, 2)

        if isinstance(module, PixelConv2d):
            parts = {256: high, 1: low}
        else:
            parts = {65536: pair(torch.zeros_like(high), high), 256: pair(high, low)}
        self.products = [_Product(module, part, weight_scale * factor) for factor, part in parts.items()]
        self.bias: Tensor | None = None  # of the products, in multiples of the output's scales

    def __call__(
        self, x: UInt8[Tensor, "N ..."], output: torch.dtype = torch.uint8, activation: str = "relu"
    ) -> Tensor:
        """The outputs of `x`, which has its channels last in memory: bytes (N, 2 O, ...), or float32 (N, O, ...)."""
        first, second = self.products
        sums = second(x, None, torch.float32, activation, first(x, self.bias, torch.float32, "none"))
        if output == torch.float32:
            return sums
        return sums.clamp_(0, 65_535).to(torch.uint16).permute(0, 2, 3, 1).view(torch.uint8).permute(0, 3, 1, 2)


class _Product:
    """A convolution or linear layer of bytes by eight-bit weights, each output's a multiple of its scale."""

    def __init__(self, module: nn.Module, weight: Tensor, weight_scale: Tensor) -> None:
        self.weight_scale, self.zero_points = weight_scale, torch.zeros(len(weight), dtype=torch.int32)
        self.geometry: tuple[Any, ...] = ()
        onednn, rounded = torch.ops.onednn, weight.to(torch.int8).contiguous()
        if isinstance(module, nn.Conv2d):
            self.geometry = *_geometry(module, weight), 1  # the last: groups
            self.weight = onednn.qconv_prepack(rounded, weight_scale, 1.0, 0, *self.geometry, None)
            self.product = onednn.qconv3d_pointwise if weight.dim() == 5 else onednn.qconv2d_pointwise
        else:
            self.weight = onednn.qlinear_prepack(rounded, None)
            self.product = onednn.qlinear_pointwise

    def __call__(
        self, x: Tensor, bias: Tensor | None, output: torch.dtype, activation: str, sums: Tensor | None = None
    ) -> Tensor:
        """The products of `x`, as bytes or float32; or float32 sums, to which they are added in place."""
        weight = self.weight, self.weight_scale, self.zero_points
        if x.dim() == 5:
            # Torch has neither ReLU nor sums for these; but bytes are cut off at 0 in any case.
            products = self.product(x, 1.0, 0, *weight, bias, *self.geometry, 1.0, 0, output, "none", [], "")
            products = one_by_one(products)
            return products if sums is None else sums.add_(products)
        if sums is None:
            return self.product(x, 1.0, 0, *weight, bias, *self.geometry, 1.0, 0, output, activation, [], "")
        return self.product.binary(
            x, 1.0, 0, *weight, sums, bias, *self.geometry, 1.0, 0, output, 1.0, 0, "sum", 1.0, activation, [], "",
        )  # fmt: skip


def _between_bytes(weight: Tensor, scales: Tensor, output_scales: Tensor) -> Tensor:
    """The weight from multiples of the inputs' scales to multiples of the outputs'."""
    kernel = [1] * (weight.dim() - 2)
    weight = weight * scales.repeat(weight.shape[1] // len(scales)).view(1, -1, *kernel)
    return weight / output_scales.view(-1, 1, *kernel)


def _largest_of_outputs(weight: Tensor) -> Float[Tensor, " O"]:
    return weight.flatten(1).amax(dim=1).clamp_min(1e-12)


def _rounded(weight: Tensor, weight_scale: Float[Tensor, " O"]) -> Tensor:
    return (weight / weight_scale.view(-1, *[1] * (weight.dim() - 1))).round()


def _layers(network: NatureDQN) -> tuple[list[tuple[nn.Conv2d, Tensor]], tuple[nn.Linear, Tensor]]:
    """The trunk's convolutions and its hidden layer, each with its weight, whose inputs' channels come last."""
    if any(isinstance(module, nn.GroupNorm) for module in network.trunk):
        raise ValueError("the network normalises its layers' outputs, as experts do; give a student.")
    modules = [module for module in network.trunk if isinstance(module, nn.Conv2d)]
    weights = [module.blocks_weight() if isinstance(module, PixelConv2d) else module.weight for module in modules]
    (hidden,) = (module for module in network.trunk if isinstance(module, nn.Linear))
    by_position = hidden.weight.unflatten(1, (modules[-1].out_channels, -1)).transpose(1, 2).flatten(1)
    return list(zip(modules, weights, strict=True)), (hidden, by_position)


def _geometry(module: nn.Conv2d, weight: Tensor) -> tuple[list[int], list[int], list[int]]:
    """Strides, padding and dilation of a convolution with this weight: that of pixels moves by one block, and frame."""
    n_dims = weight.dim() - 2
    strides = [1] * n_dims if isinstance(module, PixelConv2d) else list(module.stride)
    return strides, [0] * n_dims, [1] * n_dims


def _flatten(x: Shaped[Tensor, "N C H W"]) -> Shaped[Tensor, "N M"]:
    """Channels last, as they are in memory: nothing is copied."""
    return x.permute(0, 2, 3, 1).flatten(1)
