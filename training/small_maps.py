"""Convolutions on maps of a few pixels as one matrix product: on CPUs their weight gradients are slow.

A 3x3 convolution of a 2x2 map joins every input pixel with every output pixel, one of 1x1 maps uses the middle of its
kernel alone. Last stages of networks on small images are such: ResNet-18 at 32 px spent half of a step there.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_PIXELS = 4  # of a map, in and out; on larger ones most pairs of pixels are out of each other's reach


class SmallMapConv2d(nn.Conv2d):
    """A convolution that is a matrix product where its maps are small enough; equal up to rounding.

    Args:
        convolution: Shares its parameters, under the same names. Zero padding, no groups, no dilation.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        self.__dict__.update({k: v for k, v in vars(convolution).items() if k not in vars(self)})
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        kernel, stride, padding = self.kernel_size, self.stride, self.padding
        assert not isinstance(padding, str)
        B, C, H, W = x.shape
        height, width = ((n + 2 * p - k) // s + 1 for n, k, s, p in zip((H, W), kernel, stride, padding, strict=True))
        taps = None
        if H * W <= MOST_PIXELS and height * width <= MOST_PIXELS:
            taps = _taps((H, W), (height, width), kernel, stride, (padding[0], padding[1]))
        if taps is None:
            return super().forward(x)
        weight = self.weight.permute(0, 2, 3, 1).flatten(1, 2)  # (D, taps, C): a view, in channels_last
        if len(taps) == 1:
            weight = weight[:, taps[0]]
        else:
            index = torch.tensor(taps, device=x.device)
            weight = weight.index_select(1, index).view(-1, height * width, H * W, C)
            weight = weight.transpose(0, 1).reshape(-1, H * W * C)  # (pixels out x D, pixels in x C)
        y = F.linear(x.permute(0, 2, 3, 1).reshape(B, -1), weight).view(B, height, width, -1)
        if self.bias is not None:
            y = y + self.bias
        return y.permute(0, 3, 1, 2)


Pair = tuple[int, int]


@lru_cache
def _taps(inputs: Pair, outputs: Pair, kernel: Pair, stride: Pair, padding: Pair) -> tuple[int, ...] | None:
    """Which tap of the kernel joins each output pixel with each input pixel; None where one is out of reach."""
    taps = []
    for out in ((i, j) for i in range(outputs[0]) for j in range(outputs[1])):
        for pixel in ((i, j) for i in range(inputs[0]) for j in range(inputs[1])):
            row, column = (a - s * b + p for a, b, s, p in zip(pixel, out, stride, padding, strict=True))
            if not (0 <= row < kernel[0] and 0 <= column < kernel[1]):
                return None
            taps.append(row * kernel[1] + column)
    return tuple(taps)


def speed_up_small_maps(module: nn.Module) -> None:
    """Replace the plain convolutions with kernels inside `module` by `SmallMapConv2d`, in place."""
    for name, child in module.named_children():
        if type(child) is nn.Conv2d and _is_plain(child):
            setattr(module, name, SmallMapConv2d(child))
        else:
            speed_up_small_maps(child)


def _is_plain(convolution: nn.Conv2d) -> bool:
    return (
        convolution.kernel_size > (1, 1)
        and convolution.groups == 1
        and convolution.dilation == (1, 1)
        and convolution.padding_mode == "zeros"
        and not isinstance(convolution.padding, str)
    )
