"""A folded network is the same function, without the batch norms."""

import pytest
import timm
import torch
from torch import nn

import sslzoo
from sslzoo.folding import folded


def lively(network: nn.Module) -> nn.Module:
    """Batch norms as after training: at their start they do next to nothing, and the last of a block is zero."""
    torch.manual_seed(0)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.weight, part.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
            nn.init.normal_(part.bias)
            nn.init.normal_(part.running_mean)  # type: ignore[arg-type]
    return network.eval()


# plain; two kinds of downsampling; attention between batch norm and sum; anti-aliasing after the activation; groups
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet26d", "seresnet18", "resnetblur18", "resnext50_32x4d"])
def test_features_stay(name: str) -> None:
    network = lively(timm.create_model(name, num_classes=0))
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected, found = network(images), folded(network)(images)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_of_resnet50_no_batch_norm_is_left_and_the_original_is_as_it_was() -> None:
    network = lively(timm.create_model("resnet50", num_classes=0))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded(network).modules())
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_other_networks_and_half_precision_are_left_alone() -> None:
    vgg = sslzoo.create("vgg11_bn", seed=0, image_size=32).model.eval()
    assert folded(vgg) is vgg
    half = timm.create_model("resnet18", num_classes=0).eval().bfloat16()
    assert folded(half) is half


def test_an_encoder_has_its_own_network_back_after_embedding() -> None:
    encoder = sslzoo.create("resnet18quarter", seed=0, image_size=32)
    network = encoder.model
    encoder.embed(torch.rand(3, 3, 32, 32))
    assert encoder.model is network
    with pytest.raises(ValueError):
        encoder.embed(torch.rand(3, 3, 32, 32), batch_size=0)
    assert encoder.model is network
