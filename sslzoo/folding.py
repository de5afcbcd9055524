"""Batch norms folded into the convolutions before them: the same network for encoding, in fewer passes."""

import copy
from itertools import pairwise

import torch
from timm.models.resnet import ResNet
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def folded(network: nn.Module) -> nn.Module:
    """Return a copy in which convolutions do the work of the batch norms after them; features are equal to rounding.

    That is known of timm's ResNets, whose batch norms work on the convolution that is registered right before them,
    and is accurate in float32 only. Any other network is returned as it is.

    Args:
        network: In eval mode.
    """
    if not isinstance(network, ResNet) or next(network.parameters()).dtype != torch.float32:
        return network
    network = copy.deepcopy(network)
    for part in list(network.modules()):
        for (conv_name, conv), (norm_name, norm) in pairwise(list(part.named_children())):
            if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
                setattr(part, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(part, norm_name, nn.Identity())
    return network
