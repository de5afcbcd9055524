"""Networks that timm does not have, in its key names: authors began, padded, strode, widened or ended them otherwise.

A config says so in its block "sslzoo": `"padding": "same"`, `"last_stride": 1`, `"sobel": true`. The weights do not
show it, and other libraries do not read it: there the features are others. `adapt` mends a network of timm or
torchvision:

    model = timm.create_model("local-dir:byol", pretrained=True)
    adapt(model, padding="same")

Networks that are of another shape have a name of their own (`resnet200w2`, `resnetv2_50bare`), which timm knows once
this module is imported.
"""

from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import BatchNormAct2d, create_conv2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d

SAME = "same"
SOBEL = (((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0)), ((1.0, 2.0, 1.0), (0.0, 0.0, 0.0), (-1.0, -2.0, -1.0)))
OWN = {  # networks that timm learns of here -> what they are
    "resnet200w2": "resnet200 with all of its widths doubled",
    "resnetv2_50bare": "resnetv2_50 without the batch norm and ReLU behind its last stage",
}
SETTINGS = ("padding", "last_stride", "sobel")


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the config.json of an encoder says to `adapt`."""
    block = config.get("sslzoo") or {}
    return {key: block[key] for key in SETTINGS if key in block}


def adapt(network: nn.Module, *, padding: str | None = None, last_stride: int = 2, sobel: bool = False) -> None:
    """Change a network of timm or torchvision in place; its parameters and their names stay. Twice is as good as once.

    Args:
        network: A ResNet: has conv1, maxpool, layer1 to layer4. For `sobel` also a VGG: has features.
        padding: "same": layers of stride 2 pad as TensorFlow's SAME, an even image by one more at its right and bottom
            than at its left and top. Elsewhere both are alike.
        last_stride: 1: layer4 keeps the resolution of layer3, without dilation.
        sobel: The first convolution, of two channels, sees the edges of colour images: see `SobelConv`.

    Raises:
        ValueError: Another setting, or `padding` and `sobel` at once: no author has both.
    """
    if padding not in (None, SAME) or last_stride not in (1, 2):
        raise ValueError(f"padding must be {SAME!r} and last_stride 1 or 2, got {padding!r} and {last_stride!r}.")
    if padding == SAME and sobel:
        raise ValueError("padding='same' and sobel=True both change the first convolution: give one of them.")
    net: Any = network
    if sobel:
        if hasattr(net, "conv1"):
            net.conv1 = _of_edges(net.conv1)
        else:
            net.features[0] = _of_edges(net.features[0])
    if last_stride == 1:
        for conv in (net.layer4[0].conv1, net.layer4[0].conv2, net.layer4[0].downsample[0]):
            conv.stride = (1, 1)
        if hasattr(net, "feature_info"):
            net.feature_info[-1]["reduction"] = net.feature_info[-2]["reduction"]
    if padding == SAME:
        net.conv1 = _same(net.conv1)
        net.maxpool = _SamePool()
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            stage[0].conv1, stage[0].conv2 = _same(stage[0].conv1), _same(stage[0].conv2)


def _mirrored(x: Tensor) -> Tensor:
    """Rows and columns from the last to the first.

    At stride 2 SAME aligns its windows with the end of an image, be its size even or odd: it is ordinary padding, of a
    mirrored image. timm's layers pad by the image's size instead, of which torch.export takes many minutes to make
    sense.
    """
    return x.flip((-2, -1))


class _SameConv(nn.Conv2d):
    def forward(self, images: Tensor) -> Tensor:
        padding = self.kernel_size[0] // 2
        return _mirrored(conv2d(_mirrored(images), _mirrored(self.weight), stride=2, padding=padding))


class _SamePool(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return _mirrored(max_pool2d(_mirrored(images), 3, stride=2, padding=1))


def _same(conv: Any) -> Any:
    if conv.stride == (1, 1) or conv.kernel_size == (1, 1):
        return conv  # pads alike
    with torch.device("meta"):
        same = _SameConv(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, bias=False)
    same.weight = conv.weight
    return same.train(conv.training)


class SobelConv(nn.Conv2d):
    """A convolution of the edges of normalised colour images, as DeepCluster's authors have it. (B, 3, H, W) in.

    The mean of the three channels is filtered by two Sobel kernels, which nothing trains: for edges from left to right
    and from top to bottom.
    """

    kernels: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """What the two kernels see, zeros around it, goes through the convolution."""
        return super().forward(conv2d(images.mean(1, keepdim=True), self.kernels, padding=1))


def _of_edges(conv: Any) -> Any:
    if isinstance(conv, SobelConv):
        return conv
    with torch.device("meta"):
        edges = SobelConv(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=conv.bias is not None
        )
    edges.weight, edges.bias = conv.weight, conv.bias
    edges.register_buffer("kernels", conv.weight.new_tensor(SOBEL)[:, None], persistent=False)
    return edges.train(conv.training)


class _WideResNet(ResNet):  # type: ignore[misc]  # mypy does not follow timm
    """timm's ResNet with a plain 7x7 stem of any width, where timm's own always has 64 channels."""

    def __init__(self, stem_channels: int, in_chans: int = 3, **args: Any) -> None:
        # the deep stem is the one whose width timm lets choose: it leaves room for one convolution in its place
        super().__init__(in_chans=in_chans, stem_type="deep", stem_width=stem_channels // 2, **args)
        self.conv1 = nn.Conv2d(in_chans, stem_channels, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")


class _BareResNetV2(ResNetV2):  # type: ignore[misc]  # mypy does not follow timm
    """timm's pre-activation ResNet without the batch norm and ReLU behind its last stage."""

    def __init__(self, **args: Any) -> None:
        super().__init__(conv_layer=create_conv2d, norm_layer=BatchNormAct2d, **args)
        self.norm = nn.Identity()


_CFG = {"input_size": (3, 224, 224), "num_classes": 1000, "pool_size": (7, 7)}
default_cfgs = generate_default_cfgs(  # where timm looks for them
    {
        "resnet200w2": {**_CFG, "first_conv": "conv1", "classifier": "fc"},
        "resnetv2_50bare": {**_CFG, "first_conv": "stem.conv", "classifier": "head.fc"},
    }
)


def resnet200w2(pretrained: bool = False, **args: Any) -> nn.Module:
    """ResNet-200 with all of its widths doubled, the stem's too: 250 M parameters, 4096 features."""
    shape = {"block": Bottleneck, "layers": (3, 24, 36, 3), "channels": (128, 256, 512, 1024), "stem_channels": 128}
    return build_model_with_cfg(_WideResNet, "resnet200w2", pretrained, **shape, **args)


def resnetv2_50bare(pretrained: bool = False, **args: Any) -> nn.Module:
    """Pre-activation ResNet-50 that ends with its last stage: 23.5 M parameters, 2048 features of either sign."""
    args = {"layers": (3, 4, 6, 3), **args}
    return build_model_with_cfg(
        _BareResNetV2, "resnetv2_50bare", pretrained, feature_cfg={"flatten_sequential": True}, **args
    )


for entrypoint in (resnet200w2, resnetv2_50bare):
    register_model(entrypoint)
