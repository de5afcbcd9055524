import pytest
import torch
from torch import nn


@pytest.fixture
def tiny_encoder() -> nn.Module:
    """An encoder (B, 3, H, W) -> (B, 8) for images of any size."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    net.num_features = 8  # type: ignore[assignment]
    return net
