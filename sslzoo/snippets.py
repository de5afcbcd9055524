"""Code that cards show: how each library loads a model folder, from wherever the model is.

Five libraries read one folder: sslzoo, timm, transformers, torchvision (where it has the same network) and
segmentation-models-pytorch (where the maps form a pyramid).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sslzoo.resnets import OWN, settings
from sslzoo.weights import sees_lightness

# Networks whose key names are torchvision's; variants with model_args and deep stems have no twin there.
_TORCHVISION_RESNETS = frozenset(
    ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "wide_resnet50_2"]
)
_TORCHVISION_VGGS = frozenset(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn"))
_LIGHTNESS = (
    "from sslzoo.lab import lightness_image\n\n"
    "# the network sees L of CIE Lab in one channel; other libraries would take Pillow's grey, or fail on colours\n"
    "image = lightness_image(image)"
)
_PYRAMIDS = ("resnet", "resnext", "wide_resnet", "convnext", "vgg")  # maps of strides 2 or 4, 8, 16, 32


@dataclass(frozen=True)
class Place:
    """Where a model is, in the words of each library; all of them Python code.

    Attributes:
        name: What sslzoo takes.
        folder: A line or two that set `folder` for the other libraries; None where they take the name.
        timm: What timm takes.
        transformers: What transformers takes.
        weights: The path of model.safetensors.
        imports: What `weights` needs to be imported.
    """

    name: str
    folder: str | None = None
    timm: str = 'f"local-dir:{folder}"'
    transformers: str = "folder"
    weights: str = 'f"{folder}/model.safetensors"'
    imports: str = ""


HERE = Place('"."', 'folder = "."  # this one')


def zoo_entry(id_: str) -> Place:
    """A model of the zoo, which sslzoo finds by id."""
    return Place(f'"{id_}"', f'from sslzoo.weights import locate\n\nfolder = str(locate("{id_}"))')


def hub_repository(name: str) -> Place:
    """A repository of the Hugging Face Hub: "org/name"."""
    return Place(
        f'"{name}"',
        None,
        f'"hf-hub:{name}"',
        f'"{name}"',
        f'hf_hub_download("{name}", "model.safetensors")',
        "from huggingface_hub import hf_hub_download\n",
    )


def encoder_snippets(config: Mapping[str, Any], place: Place) -> list[str]:
    """Code that loads an encoder, a library at a time; they run in this order, beside a file photo.jpg.

    Args:
        config: Its config.json.
        place: Where it is.
    """
    if sees_top_half(config):
        known = "import sslzoo.mnist_networks  # timm learns of this network"
        return [code for code in (_sslzoo(config, place), place.folder, f"{known}\n{_timm(config, place)}") if code]
    snippets = [_sslzoo(config, place), place.folder, _timm(config, place), _transformers(config, place)]
    if not sees_lightness(config):
        snippets += [_pipeline(config, place)]
    snippets += [_torchvision(config, place), _smp(config, place)]
    if _adaptation(config)[1]:  # libraries that lack such a network, or would give other features
        snippets = snippets[:3]
    if sees_lightness(config):
        snippets[1:1] = [_LIGHTNESS]
    return [code for code in snippets if code]


def classifier_snippets(config: Mapping[str, Any], place: Place) -> list[str]:
    """Code that loads a fine-tuned classifier and classifies photo.jpg, a library at a time.

    Args:
        config: Its config.json.
        place: Where it is.
    """
    encoder = {**config, "sslzoo": config["sslzoo"]["encoder"]}
    ours = f'import sslzoo\n\nmodel = sslzoo.load_model({place.name})\nprint(model.predict("photo.jpg"))'
    if sees_top_half(encoder):  # only sslzoo knows the network
        return [ours]
    change, imports = _adaptation(encoder)
    snippets = [
        f'{ours}\nimage = sslzoo.read_image("photo.jpg")  # for the libraries below',
        _LIGHTNESS if sees_lightness(encoder) else None,
        place.folder,
        f"{_timm_model(place, change, imports)}logits = model(transform(image)[None])  # (1, number of classes)\n"
        'label = model.pretrained_cfg["label_names"][int(logits.argmax())]',
    ]
    if imports:  # transformers lacks such a network, or would give other answers
        return [code for code in snippets if code]
    answers = f'\nanswers = pipeline("image-classification", model={place.transformers})("photo.jpg")'
    pipeline = "" if sees_lightness(encoder) else ", pipeline"  # which takes colours only
    snippets += [
        f"from transformers import AutoImageProcessor, AutoModelForImageClassification{pipeline}\n\n"
        f"processor = AutoImageProcessor.from_pretrained({place.transformers})\n"
        f"model = AutoModelForImageClassification.from_pretrained({place.transformers})\n"
        "logits = model(**processor(image)).logits\n"
        f"label = model.config.id2label[int(logits.argmax())]{answers if pipeline else ''}",
    ]
    return [code for code in snippets if code]


def segmenter_snippets(place: Place) -> list[str]:
    """Code that loads a fine-tuned segmenter and segments photo.jpg.

    Args:
        place: Where it is.
    """
    return [
        f"import sslzoo\n\nmodel = sslzoo.load_model({place.name})\n"
        'found = model.predict("photo.jpg")\nprint(found)  # the classes on it, and their parts of the pixels\n'
        "mask = found.masks[0]  # (H, W) numbers of model.classes\n"
        'found.save("overlay.png")  # or .json, .csv; or a folder, for mask files'
    ]


def detector_snippets(place: Place) -> list[str]:
    """Code that loads a fine-tuned detector and finds objects in photo.jpg.

    Args:
        place: Where it is.
    """
    return [
        f"import sslzoo\n\nmodel = sslzoo.load_model({place.name})\n"
        'found = model.predict("photo.jpg")\nprint(found)  # number and scores of the objects, by class\n'
        'found.save("photo.boxes.png")  # or .json, .coco.json, .csv\n'
        "boxes = found.found[0].xyxy  # (number of boxes, 4), left, top, right, bottom in pixels\n"
        "network = model.network  # torchvision's own detector",
    ]


def sees_top_half(config: Mapping[str, Any]) -> bool:
    """Whether this is a network of `sslzoo.mnist_networks`, which have no feature maps and are in no other library."""
    return str(config["architecture"]).startswith("tophalf_")


def _is_vgg(config: Mapping[str, Any]) -> bool:
    """Tell a VGG: timm's pools after two layers of its classifier, so features are the mean of its maps."""
    return str(config["architecture"]).startswith("vgg")


def _width(config: Mapping[str, Any]) -> str:
    return f"(1, {config['num_features']})"


def _sslzoo(config: Mapping[str, Any], place: Place) -> str:
    return (
        f'import sslzoo\n\nencoder = sslzoo.load({place.name})\nimage = sslzoo.read_image("photo.jpg")\n'
        "batch = encoder.transform(image)[None]  # normalised, (1, C, H, W)\n"
        f"features = encoder(batch)  # {_width(config)}"
        + (
            ""
            if sees_top_half(config)
            else "\nmaps = encoder.feature_maps(batch)  # [(1, C, h, w), ...], fine to coarse"
        )
    )


def _timm_model(place: Place, change: str = "", imports: str = "") -> str:
    return (
        f"import timm\n{imports}\nmodel = timm.create_model({place.timm}, pretrained=True).eval()\n{change}"
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n"
    )


def _adaptation(config: Mapping[str, Any]) -> tuple[str, str]:
    """Code that mends timm's network where its authors built it otherwise, and what has to be imported; or nothing."""
    arguments = ", ".join(f"{key}={_python(value)}" for key, value in settings(config).items())
    if arguments:
        return f"adapt(model, {arguments})  # as its authors built it\n", "\nfrom sslzoo.resnets import adapt\n"
    own = config["architecture"] in OWN
    return "", "\nimport sslzoo.resnets  # timm learns of this network\n" if own else ""


def _timm(config: Mapping[str, Any], place: Place) -> str:
    call, mean = ("model.forward_features", ".mean((2, 3))") if _is_vgg(config) else ("model", "")
    change, imports = _adaptation(config)
    return f"{_timm_model(place, change, imports)}features = {call}(transform(image)[None]){mean}  # {_width(config)}"


def _transformers(config: Mapping[str, Any], place: Place) -> str:
    output = "last_hidden_state.mean((2, 3))" if _is_vgg(config) else "pooler_output"
    return (
        "from transformers import AutoImageProcessor, AutoModel\n\n"
        f"processor = AutoImageProcessor.from_pretrained({place.transformers})\n"
        f"model = AutoModel.from_pretrained({place.transformers})\n"
        f"features = model(**processor(image)).{output}  # {_width(config)}"
    )


def _pipeline(config: Mapping[str, Any], place: Place) -> str:
    pool, mean = ("", ".mean((2, 3))") if _is_vgg(config) else (", pool=True", "")
    return (
        "from transformers import pipeline\n\n"
        f'extract = pipeline("image-feature-extraction", model={place.transformers}{pool}, return_tensors=True)\n'
        f'features = extract("photo.jpg"){mean}  # {_width(config)}'
    )


def _torchvision(config: Mapping[str, Any], place: Place) -> str | None:
    arch, args = config["architecture"], config["model_args"]
    if arch in _TORCHVISION_RESNETS and not args:
        lacking, imports = "fc", "import torch\n"
        call = "model.fc = torch.nn.Identity()\nfeatures = model.eval()(batch)"
    elif arch in _TORCHVISION_VGGS and set(args) <= {"mlp_ratio"}:
        lacking, imports = "the classifier", ""
        call = "features = model.eval().features(batch).mean((2, 3))"
    else:
        return None
    return (
        f"{imports}import torchvision\n{place.imports}from safetensors.torch import load_file\n\n"
        f"model = torchvision.models.{arch}()\n"
        f"model.load_state_dict(load_file({place.weights}), strict=False)  # lacks {lacking} alone\n"
        f"{call}  # {_width(config)}"
    )


def _smp(config: Mapping[str, Any], place: Place) -> str | None:
    arch = config["architecture"]
    if not arch.startswith(_PYRAMIDS):
        return None
    args = {"in_channels" if key == "in_chans" else key: value for key, value in config["model_args"].items()}
    arguments = "".join(f"    {key}={_python(value)},\n" for key, value in args.items())
    return (
        f"import segmentation_models_pytorch as smp\n{place.imports}\n"
        f'model = smp.Unet(\n    "tu-{arch}",\n    encoder_weights=True,\n'
        f'    pretrained_cfg_overlay={{"file": {place.weights}, "num_classes": 0}},\n'
        f"{arguments}    classes=2,\n)\n"
        'model.config["encoder_weights"] = None  # so that what model.save_pretrained writes\n'
        'del model.config["pretrained_cfg_overlay"]  # loads on machines without this file, too'
    )


def _python(value: Any) -> str:
    """A literal, with double quotes."""
    return json.dumps(value) if isinstance(value, str) else repr(value)
