"""A classifier in timm's terms: one network that ends in a classifier layer, as timm and transformers read it.

Its tensors are the encoder's and two more, such as fc.weight and fc.bias. Only VGG needs thought: timm has two wide
layers between its maps and its classifier, where our encoders take the mean of the maps. These layers can be made to
pass that mean on, at one input size: see `_vgg_to_timm`.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslzoo.encoder import Encoder, architecture, build_network

KERNEL = 7  # of the first of VGG's wide layers
VGG_WIDTH = 4096  # of the second


def to_timm(encoder: Encoder, head: nn.Linear) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of timm's network that gives `head(encoder(images))`.

    Raises:
        ValueError: timm's network of this architecture has no single linear classifier on top of the features.
    """
    config = copy.deepcopy(encoder.config)
    config["num_classes"] = config["pretrained_cfg"]["num_classes"] = head.out_features
    name = classifier_name(config)
    if encoder.mean_of_maps:
        config["model_args"]["mlp_ratio"] = encoder.num_features / VGG_WIDTH
        state = _vgg_to_timm(encoder, head)
    else:
        state = {**encoder.model.state_dict(), f"{name}.weight": head.weight, f"{name}.bias": head.bias}
    return config, state


def check(encoder: Encoder, num_classes: int) -> None:
    """Raise a ValueError if a classifier on this encoder could not be saved: before it is trained."""
    config, state = to_timm(encoder, nn.Linear(encoder.num_features, num_classes))
    wanted = timm_network(config).state_dict()
    if {key: value.shape for key, value in state.items()} != {key: value.shape for key, value in wanted.items()}:
        raise ValueError(f"timm's {encoder.arch} has no single linear classifier on its features: take another one.")


def from_timm(config: dict[str, Any], state: dict[str, Tensor]) -> tuple[Encoder, nn.Linear]:
    """Take apart what `to_timm` made. The features and logits are the same bit for bit."""
    config = copy.deepcopy(config)
    name = classifier_name(config)
    weight, bias = state.pop(f"{name}.weight"), state.pop(f"{name}.bias")
    config["num_classes"] = config["pretrained_cfg"]["num_classes"] = 0
    if is_vgg := config["architecture"].startswith("vgg"):
        config["model_args"] |= architecture(config["architecture"])[1]
    network = build_network(config["architecture"], config["pretrained_cfg"], config["model_args"], seed=0)
    own = network.state_dict()
    unused = {key: own[key] for key in own if is_vgg and key.startswith("pre_logits.")}
    network.load_state_dict({key: state[key] for key in own if key not in unused} | unused)
    encoder = Encoder(network, config)
    head = nn.Linear(encoder.num_features, len(bias))
    head.load_state_dict({"weight": weight[:, : encoder.num_features], "bias": bias})
    return encoder, head


def timm_network(config: dict[str, Any]) -> nn.Module:
    """Build the network that such a config describes, with random weights."""
    args, cfg = config["model_args"], config["pretrained_cfg"]
    return build_network(config["architecture"], cfg, args, seed=0, num_classes=config["num_classes"])


def classifier_name(config: dict[str, Any]) -> str:
    """Where timm's network has its classifier, such as "fc" or "head.fc".

    Raises:
        ValueError: It has none, or several.
    """
    name = config["pretrained_cfg"].get("classifier")
    if isinstance(name, str):
        return name
    raise ValueError(f"timm's {config['architecture']} has classifiers {name!r}, one is needed. Take another one.")


def _vgg_to_timm(encoder: Encoder, head: nn.Linear) -> dict[str, Tensor]:
    """VGG's wide layers as the mean of the maps, and the head.

    The first, a 7×7 convolution over maps of at most 7×7, weighs all places of one map alike; the second copies.
    The ReLU behind either changes nothing: VGG's maps end in one, so that their mean is not negative.
    """
    channels, (height, width) = encoder.num_features, encoder.input_size[1:]
    rows, columns = _mean_weights(height // 32), _mean_weights(width // 32)
    first = torch.zeros(channels, channels, KERNEL, KERNEL)
    first[range(channels), range(channels)] = torch.outer(rows, columns)
    weight = torch.zeros(head.out_features, VGG_WIDTH)
    weight[:, :channels] = head.weight.detach()
    features = {key: value for key, value in encoder.model.state_dict().items() if not key.startswith("pre_logits.")}
    return features | {
        "pre_logits.fc1.weight": first,
        "pre_logits.fc1.bias": torch.zeros(channels),
        "pre_logits.fc2.weight": torch.eye(VGG_WIDTH, channels)[..., None, None],
        "pre_logits.fc2.bias": torch.zeros(VGG_WIDTH),
        "head.fc.weight": weight,
        "head.fc.bias": head.bias,
    }


def _mean_weights(n: int) -> Tensor:
    """(7,) weights that make the mean of n values from the 7 that timm resizes them to."""
    if n > KERNEL:
        raise ValueError(
            f"A VGG classifier is saved for images of up to 255 pixels, since timm's has a {KERNEL}×{KERNEL} "
            f"convolution on maps at stride 32; this encoder's are {n} wide. Create it with a smaller image_size."
        )
    resize = F.adaptive_avg_pool1d(torch.eye(n, dtype=torch.float64)[None], KERNEL)[0]  # (n, 7)
    return torch.linalg.lstsq(resize, torch.full((n, 1), 1 / n, dtype=torch.float64)).solution[:, 0].float()
