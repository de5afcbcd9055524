"""Encoder: a timm network without its classifier, together with its input settings.

encoder = sslzoo.load("byol-resnet18quarter-cifar10")
features = encoder(encoder.transform(image)[None])     # (1, D)
maps = encoder.feature_maps(images)                    # [(B, C, h, w), ...], fine to coarse
"""

import copy
import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from sslzoo import mnist_networks, resnets, weights  # noqa: F401 (timm's registry gets the networks)
from sslzoo.transforms import eval_transform

# Our names for timm networks with other arguments. The plain 7×7 stem stays 64 wide in timm whatever the channels are,
# and would cost 1.7 times the rest of a thin network; the deep stem (three 3×3 convolutions) can be thin as well.
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "resnet18quarter": ("resnet18", {"channels": [16, 32, 64, 128], "stem_type": "deep", "stem_width": 8}),
}
# Arguments of timm.create_model that would load other weights (a pickle, even) or make another kind of network.
_RESERVED = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
_RESERVED |= {"num_classes", "features_only"}
# Mean and std by number of channels, for pixels in [0, 1]. Grey: the means over ImageNet's three.
_NORMALISATION = {
    1: ([0.449], [0.226]),
    3: (list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)),
}


class Encoder(nn.Module):
    """Images in, features out. Always in eval mode when made, loaded or created.

    Images are (B, C, H, W), float, normalised as `transform` does it. Any H and W will do, except for networks
    of fixed input size (most vision transformers).

    Args:
        model: timm network with `num_classes=0`. Where the config says that its authors padded or strode otherwise, it
            is changed to that (see `sslzoo.resnets`).
        config: What its config.json holds, as `make_config` builds it.

    Attributes:
        model: The timm network.
        config: A copy of `config`; `save_pretrained` writes it.
        num_features: Width D of `encoder(images)`.
        mean_of_maps: Features are the mean of the last maps, whatever timm's network does with them.
        channels: C of each of the feature maps.
        reductions: Stride in pixels of each of the feature maps. Networks that pad (ResNets) give maps of
            ceil(H / reduction) rows, those that do not (VGG, ConvNeXt) floor(H / reduction).
    """

    def __init__(self, model: nn.Module, config: Mapping[str, Any]) -> None:
        super().__init__()
        resnets.adapt(model, **resnets.settings(config))
        self.model = model
        network: Any = model  # timm's attributes, which nn.Module does not declare
        # timm's VGG has two wide layers between its feature maps and num_classes=0. They belong to a classifier:
        # features here are the mean of the last maps. Frozen, since DDP stops at parameters without a gradient.
        self.mean_of_maps = isinstance(getattr(network, "pre_logits", None), nn.Module)
        if self.mean_of_maps:
            network.pre_logits.requires_grad_(False)
        self.num_features: int = network.num_features if self.mean_of_maps else network.head_hidden_size
        self._indices, self.channels, self.reductions = _map_layout(network)
        self.config: dict[str, Any] = {**copy.deepcopy(dict(config)), "num_features": self.num_features}
        self.eval()

    @property
    def arch(self) -> str:
        """Architecture, as `create` takes it."""
        architecture, args = self.config["architecture"], self.config["model_args"]
        for name, (base, changes) in VARIANTS.items():
            if base == architecture and all(args.get(key) == value for key, value in changes.items()):
                return name
        return str(architecture)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width (pixels) of what `transform` returns."""
        channels, height, width = self.config["pretrained_cfg"]["input_size"]
        return channels, height, width

    @property
    def transform(self) -> Callable[[Image.Image], Tensor]:
        """PIL image -> normalised float32 tensor (C, H, W). Can be pickled."""
        return eval_transform(self.config)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: (B, C, H, W), normalised.

        Returns:
            Features (B, D).

        Raises:
            ValueError: Images of another shape or type, or of another size where the network takes one only.
        """
        self._check(images)
        if self.mean_of_maps:
            return self.model.forward_features(images).mean((2, 3))  # type: ignore[operator]
        return self.model(images)

    def feature_maps(self, images: Tensor, *, count: int | None = None) -> list[Tensor]:
        """Return the maps inside the network, as timm's `features_only=True` has them.

        ResNets give five: the stem at stride 2, then the stages at strides 4, 8, 16 and 32. Networks of one
        resolution (vision transformers) give their last three blocks, at the stride of a patch.

        Args:
            images: (B, C, H, W), normalised.
            count: So many of the finest maps; the network goes no further than they need. None gives all.

        Returns:
            Maps (B, C, h, w), fine to coarse, with `channels` and `reductions`.

        Raises:
            ValueError: The architecture has no feature maps, or takes images of one other size only.
        """
        if not self._indices:
            raise ValueError(f"timm's {self.arch} gives no feature maps, only features: call the encoder itself.")
        self._check(images)
        return self.model.forward_intermediates(  # type: ignore[operator]
            images, indices=self._indices[:count], stop_early=count is not None, intermediates_only=True
        )

    def _check(self, images: Tensor) -> None:
        channels, height, width = self.input_size
        if images.ndim != 4 or images.shape[1] != channels or not images.is_floating_point():
            raise ValueError(
                f"{self.arch} takes normalised float images (B, {channels}, H, W), got {images.dtype} of shape "
                f"{tuple(images.shape)}. encoder.transform makes one such image from a PIL image."
            )
        args = self.config["model_args"]
        if not self.config["pretrained_cfg"].get("fixed_input_size"):
            return
        if args.get("dynamic_img_size") or not args.get("strict_img_size", True):
            return
        if images.shape[-2:] != (height, width):
            raise ValueError(
                f"{self.arch} takes images of {height}×{width} pixels only, got {images.shape[-2]}×{images.shape[-1]}. "
                f"Resize them, or for a vision transformer of any size: sslzoo.create({self.arch!r}, "
                "dynamic_img_size=True, dynamic_img_pad=True)."
            )

    def with_output_stride(self, stride: int) -> "Encoder":
        """Return a new encoder with a copy of the weights whose coarsest maps have this stride (dilated convolutions).

        Args:
            stride: 8, 16 or 32.

        Raises:
            ValueError: The architecture cannot be dilated, or not to this stride.
        """
        config = copy.deepcopy(self.config)
        config["model_args"]["output_stride"] = stride
        if config["pretrained_cfg"].get("pool_size"):
            config["pretrained_cfg"]["pool_size"] = [math.ceil(side / stride) for side in self.input_size[1:]]
        try:
            network = build_network(config["architecture"], config["pretrained_cfg"], config["model_args"], seed=0)
            network.load_state_dict(self.model.state_dict())
        except (AssertionError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{self.arch} has no output stride {stride} in timm ({str(error) or type(error).__name__}). "
                "ResNets, for instance, have 8, 16 and 32."
            ) from error
        return Encoder(network, config).to(next(self.parameters()))

    def embed(
        self, images: Any, *, batch_size: int = 64, num_workers: int | None = None, progress: bool = False
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the features (N, D) of a folder, paths, PIL images, arrays or tensors: see `sslzoo.embed`."""
        from sslzoo.features import embed  # an encoder needs no data loading

        return embed(self, images, batch_size=batch_size, num_workers=num_workers, progress=progress)

    def save_pretrained(self, folder: str | Path, card: str | None = None, *, half: bool = False) -> None:
        """Save config.json, model.safetensors and, if a card is given, README.md.

        timm (`"local-dir:FOLDER"`), transformers (`AutoModel`) and `sslzoo.load` read the folder.

        Args:
            folder: Made if it is not there. Other files in it stay.
            card: Text of README.md.
            half: Store matrices and convolutions as float16: half the size, features equal to about three digits.
        """
        weights.write_folder(Path(folder), self.config, self.model.state_dict(), card, half=half)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        card: str | None = None,
        licence: str | None = None,
        private: bool = False,
        message: str | None = None,
        token: str | None = None,
        half: bool = False,
    ) -> str:
        """Push to a repository of the Hugging Face Hub: only what changed, in one commit.

        Args:
            repo_id: "org/name"; made if it is not there.
            card: Text of README.md; None renders one from `config`, whose code loads from the repository.
            licence: Of the weights, for that card: an SPDX identifier such as "apache-2.0"; None states nothing.
            private: Make it private. An existing public repository is refused.
            message: Of the commit.
            token: With write access; None takes HF_TOKEN or that of `hf auth login`.
            half: As for `save_pretrained`.

        Returns:
            URL of the commit.

        Raises:
            sslzoo.hub.HubError: It cannot be done; says why and what to do.
        """
        from sslzoo.publish import push_saved  # an encoder needs no card until it is shown to others

        save = partial(self.save_pretrained, half=half)
        return push_saved(save, repo_id, card=card, licence=licence, private=private, message=message, token=token)

    @classmethod
    def from_pretrained(
        cls, name_or_folder: str | Path, *, revision: str | None = None, device: torch.device | str = "cpu"
    ) -> "Encoder":
        """Load an encoder: the same as `sslzoo.load`."""
        return load(name_or_folder, revision=revision, device=device)

    def extra_repr(self) -> str:
        """One line about the encoder, within PyTorch's own listing."""
        return f"{self.arch}, num_features={self.num_features}, input_size={self.input_size}"


def load(
    name_or_folder: str | Path,
    *,
    revision: str | None = None,
    device: torch.device | str = "cpu",
    allow_noncommercial: bool = True,
) -> Encoder:
    """Load a pretrained encoder, in eval mode.

    The authors' ImageNet encoders (ids that end in "-imagenet") are downloaded from them and converted the first time,
    and come from the cache afterwards: see `sslzoo.originals`.

    Args:
        name_or_folder: Zoo id or alias (see `sslzoo.list_models()`), a folder that `save_pretrained` wrote, or
            "org/name" on the Hugging Face Hub. An existing folder wins over a repository of the same name.
        revision: Branch, tag or commit of the repository; a commit always gives the same bytes.
        device: Where to put it, such as "cuda".
        allow_noncommercial: False refuses weights under a licence such as CC BY-NC; so does SSLZOO_COMMERCIAL=1 in the
            environment. Otherwise their licence is told once.

    Raises:
        sslzoo.zoo.UnknownModelError: No such id and no such folder; names the nearest ids.
        sslzoo.hub.HubError: The repository cannot be had; says why, what to do and what loads without a network.
        sslzoo.downloads.DownloadError: The authors' file cannot be had; says from where, why and what to do.
        sslzoo.weights.LicenceError: Its licence is not allowed.
        sslzoo.weights.WeightsError: A file is missing, damaged, or does not fit; nothing is loaded.
    """
    folder = weights.locate(name_or_folder, revision=revision, allow_noncommercial=allow_noncommercial)
    config = weights.read_config(folder)
    weights.check_licence(str(name_or_folder), config["sslzoo"].get("licence"), allow_noncommercial)
    try:
        network = build_network(config["architecture"], config["pretrained_cfg"], config["model_args"], seed=0)
    except Exception as error:  # timm's constructors raise whatever a wrong argument leads to
        raise weights.WeightsError(
            f"{folder / weights.CONFIG}: timm {timm.__version__} cannot build {config['architecture']!r} with "
            f"{config['model_args']} ({type(error).__name__}: {error})."
        ) from error
    network.load_state_dict(weights.read_state(folder, network.state_dict()))
    return Encoder(network, config).to(device)


def create(
    arch: str, *, seed: int | None = None, image_size: int | None = None, lightness: bool = False, **model_args: Any
) -> Encoder:
    """Create an encoder with random weights, in eval mode.

    Args:
        arch: An architecture of timm, such as "resnet50", or "resnet18quarter": resnet18 with a quarter of the
            channels and a thin deep stem (0.70 M parameters), or one of `sslzoo.mnist_networks`.
        seed: Gives the same weights again, and leaves torch's own random state alone. None draws from that state.
        image_size: Side in pixels of what `encoder.transform` returns; None takes timm's for this architecture.
        lightness: One channel in, the lightness L of Lab, which `encoder.transform` makes of every image.
        model_args: More arguments of the timm network, such as `in_chans=1`.

    Raises:
        ValueError: timm has no such architecture; names the nearest.
    """
    if "img_size" in model_args:
        raise ValueError("img_size is timm's word for what is image_size here: pass image_size, it sets both.")
    name, defaults = architecture(arch)
    args = {**defaults, **model_args, **({"in_chans": 1} if lightness else {})}
    pretrained_cfg = _pretrained_cfg(name, args, image_size)
    if lightness:
        pretrained_cfg |= {
            "mean": [0.5],
            "std": [0.25],
        }  # of L / 100: L - 50, as colorization has it, to about unit size
    if pretrained_cfg["fixed_input_size"]:
        args.setdefault("img_size", pretrained_cfg["input_size"][-1])  # transformers reads it nowhere else
    network = build_network(name, pretrained_cfg, args, seed)
    config = {
        "architecture": name,
        "num_classes": 0,
        "global_pool": _global_pool(network),
        "model_args": args,
        "pretrained_cfg": pretrained_cfg,
        "sslzoo": {
            "schema": weights.SCHEMA,
            "method": None,
            "dataset": None,
            "recipe": {},
            "metrics": {},
            "source": "random",
            **({"input": weights.LIGHTNESS} if lightness else {}),
        },
    }
    return Encoder(network, config)


def architecture(arch: str) -> tuple[str, dict[str, Any]]:
    """Translate the name of an architecture: "resnet18quarter" -> ("resnet18", {"channels": …}).

    Raises:
        ValueError: timm has no such architecture; names the nearest.
    """
    if arch in VARIANTS:
        name, args = VARIANTS[arch]
        return name, copy.deepcopy(dict(args))
    if "." in arch and timm.is_model(arch):
        raise ValueError(f"{arch!r} names weights of timm. Random weights have no tag: use {arch.split('.')[0]!r}.")
    if not timm.is_model(arch):
        near = get_close_matches(arch, [*VARIANTS, *timm.list_models()], n=5)
        hint = f"Did you mean {', '.join(map(repr, near))}? " if near else ""
        raise ValueError(f"Unknown architecture {arch!r}. {hint}timm.list_models() shows all.")
    # the two wide layers that an encoder does not use (see Encoder): 59 instead of 537 MB
    return arch, {"mlp_ratio": 0.001} if arch.startswith("vgg") else {}


def make_config(
    arch: str, *, image_size: int | None = None, tag: str, sslzoo: Mapping[str, Any], **model_args: Any
) -> dict[str, Any]:
    """Build the config.json of an encoder.

    Args:
        arch: As `create` takes it.
        image_size: As `create` takes it.
        tag: timm's name for the weights of an architecture, such as "byol_cifar10".
        sslzoo: Entries of the block "sslzoo": method, dataset, recipe, metrics, source.
        model_args: As `create` takes them.
    """
    config = create(arch, seed=0, image_size=image_size, **model_args).config
    config["pretrained_cfg"]["tag"] = tag
    config["sslzoo"].update(sslzoo)
    return config


def build_network(
    name: str, pretrained_cfg: Mapping[str, Any], args: Mapping[str, Any], seed: int | None, num_classes: int = 0
) -> nn.Module:
    """Build timm's network with random weights; with a seed, apart from torch's own random state."""
    if seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_network(name, pretrained_cfg, args, None, num_classes)
    if reserved := sorted(_RESERVED & set(args)):
        raise ValueError(f"{', '.join(reserved)} cannot be an argument of the network of an encoder.")
    if not timm.is_model(name):  # else timm takes "hf-hub:…" and "local-dir:…", and fetches them
        raise ValueError(f"timm has no architecture {name!r}.")
    return timm.create_model(
        name, pretrained=False, pretrained_cfg=dict(pretrained_cfg), num_classes=num_classes, **args
    )


def _pretrained_cfg(name: str, args: Mapping[str, Any], image_size: int | None) -> dict[str, Any]:
    """Input settings and the few facts about the network that timm needs to adapt it."""
    known = timm.get_pretrained_cfg(name)
    channels = args.get("in_chans", 3)
    if channels not in _NORMALISATION:
        raise ValueError(f"in_chans must be 1 (grey) or 3 (RGB), got {channels!r}.")
    mean, std = _NORMALISATION[channels]
    height, width = (image_size, image_size) if image_size else known.input_size[-2:]
    first_conv = known.first_conv
    if "deep" in args.get("stem_type", "") and first_conv == "conv1":
        first_conv = "conv1.0"
    pool_size = None
    if known.pool_size:
        stride = known.input_size[-1] / known.pool_size[-1]
        pool_size = [math.ceil(height / stride), math.ceil(width / stride)]
    return {
        "tag": "random",
        "input_size": [channels, height, width],
        "fixed_input_size": known.fixed_input_size,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": mean,
        "std": std,
        "num_classes": 0,
        "pool_size": pool_size,
        "first_conv": first_conv,
        "classifier": known.classifier,
    }


def _global_pool(network: nn.Module) -> str:
    pool = getattr(network, "global_pool", "avg")
    return pool if isinstance(pool, str) else getattr(pool, "pool_type", "avg")


def _map_layout(network: Any) -> tuple[list[int], list[int], list[int]]:
    """Indices among timm's intermediates, channels and reductions of what `features_only=True` takes by default."""
    stages = network.feature_info if hasattr(network, "forward_intermediates") else []
    indices = list(range(len(stages)))
    if len({stage["reduction"] for stage in stages}) == 1:
        indices = indices[-3:]
    return indices, [stages[i]["num_chs"] for i in indices], [stages[i]["reduction"] for i in indices]
