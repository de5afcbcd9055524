"""ResNets that timm does not have, in timm's key names: authors padded, strode or widened them in ways of their own.

A config says so in its block "sslzoo": `"padding": "same"`, `"last_stride": 1`. The weights do not show it, and other
libraries do not read it: there the features are others. `adapt` mends a network that timm or torchvision has made:

    model = timm.create_model("local-dir:byol", pretrained=True)
    adapt(model, padding="same")
"""

from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import Conv2dSame, create_pool2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

SAME = "same"


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the config.json of an encoder says to `adapt`."""
    block = config.get("sslzoo") or {}
    return {key: block[key] for key in ("padding", "last_stride") if key in block}


def adapt(network: nn.Module, *, padding: str | None = None, last_stride: int = 2) -> None:
    """Change a ResNet of timm or torchvision in place; its parameters and their names stay. Twice is as good as once.

    Args:
        network: Has conv1, maxpool, layer1 to layer4.
        padding: "same": layers of stride 2 pad as TensorFlow's SAME, an even image by one more at its right and bottom
            than at its left and top. Elsewhere both are alike.
        last_stride: 1: layer4 keeps the resolution of layer3, without dilation.

    Raises:
        ValueError: Another setting.
    """
    if padding not in (None, SAME) or last_stride not in (1, 2):
        raise ValueError(f"padding must be {SAME!r} and last_stride 1 or 2, got {padding!r} and {last_stride!r}.")
    net: Any = network
    if last_stride == 1:
        for conv in (net.layer4[0].conv1, net.layer4[0].conv2, net.layer4[0].downsample[0]):
            conv.stride = (1, 1)
        if hasattr(net, "feature_info"):
            net.feature_info[-1]["reduction"] = net.feature_info[-2]["reduction"]
    if padding == SAME:
        net.conv1 = _same(net.conv1)
        net.maxpool = create_pool2d("max", 3, 2, padding=SAME)
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            stage[0].conv1, stage[0].conv2 = _same(stage[0].conv1), _same(stage[0].conv2)


def _same(conv: nn.Conv2d) -> nn.Conv2d:
    if conv.stride == (1, 1) or conv.kernel_size == (1, 1):
        return conv  # pads alike
    with torch.device("meta"):
        same = Conv2dSame(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, bias=False)
    same.weight = conv.weight
    return same.train(conv.training)


class _WideResNet(ResNet):  # type: ignore[misc]  # mypy does not follow timm
    """timm's ResNet with a plain 7x7 stem of any width, where timm's own always has 64 channels."""

    def __init__(self, stem_channels: int, in_chans: int = 3, **args: Any) -> None:
        # the deep stem is the one whose width timm lets choose: it leaves room for one convolution in its place
        super().__init__(in_chans=in_chans, stem_type="deep", stem_width=stem_channels // 2, **args)
        self.conv1 = nn.Conv2d(in_chans, stem_channels, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")


_CFG = {
    "input_size": (3, 224, 224),
    "num_classes": 1000,
    "pool_size": (7, 7),
    "first_conv": "conv1",
    "classifier": "fc",
}
default_cfgs = generate_default_cfgs({"resnet200w2": _CFG})  # where timm looks for it


def resnet200w2(pretrained: bool = False, **args: Any) -> nn.Module:
    """ResNet-200 with all of its widths doubled, the stem's too: 250 M parameters, 4096 features."""
    shape = {"block": Bottleneck, "layers": (3, 24, 36, 3), "channels": (128, 256, 512, 1024), "stem_channels": 128}
    return build_model_with_cfg(_WideResNet, "resnet200w2", pretrained, **shape, **args)


register_model(resnet200w2)
