"""sslzoo: self-supervised image encoders, loaded by name.

encoder = sslzoo.load("byol-resnet18quarter-cifar10")
features = encoder(encoder.transform(image)[None])     # (1, 128)
"""

from importlib import import_module
from typing import TYPE_CHECKING

# Public name -> its module, imported on first use: `import sslzoo` and `list_models()` import no torch.
_MODULES = {
    "Encoder": "encoder",
    "create": "encoder",
    "load": "encoder",
    "embed": "features",
    "embed_to_file": "features",
    "read_features": "feature_files",
    "EncoderFeatures": "probes",
    "probe": "probes",
    "Classifier": "heads.classifier",
    "Detections": "heads.detections",
    "Detector": "heads.detector",
    "detector": "heads.detector",
    "open_boxes": "boxes",
    "Predictions": "heads.predictions",
    "classifier": "heads.classifier",
    "Segmenter": "heads.segmenter",
    "Segmentations": "heads.segmentations",
    "segmenter": "heads.segmenter",
    "load_model": "heads",
    "FinetuneReport": "finetuning",
    "finetune": "finetuning",
    "MaskSet": "masks",
    "open_images": "data",
    "open_masks": "masks",
    "read_image": "images",
    "ModelInfo": "zoo",
    "info": "zoo",
    "list_models": "zoo",
}
__all__ = ["__version__", *_MODULES]

if TYPE_CHECKING:  # the same names for type checkers and editors; a test keeps the two lists equal
    from sslzoo.boxes import open_boxes as open_boxes
    from sslzoo.data import open_images as open_images
    from sslzoo.encoder import Encoder as Encoder
    from sslzoo.encoder import create as create
    from sslzoo.encoder import load as load
    from sslzoo.feature_files import read_features as read_features
    from sslzoo.features import embed as embed
    from sslzoo.features import embed_to_file as embed_to_file
    from sslzoo.finetuning import FinetuneReport as FinetuneReport
    from sslzoo.finetuning import finetune as finetune
    from sslzoo.heads import load_model as load_model
    from sslzoo.heads.classifier import Classifier as Classifier
    from sslzoo.heads.classifier import classifier as classifier
    from sslzoo.heads.detections import Detections as Detections
    from sslzoo.heads.detector import Detector as Detector
    from sslzoo.heads.detector import detector as detector
    from sslzoo.heads.predictions import Predictions as Predictions
    from sslzoo.heads.segmentations import Segmentations as Segmentations
    from sslzoo.heads.segmenter import Segmenter as Segmenter
    from sslzoo.heads.segmenter import segmenter as segmenter
    from sslzoo.images import read_image as read_image
    from sslzoo.masks import MaskSet as MaskSet
    from sslzoo.masks import open_masks as open_masks
    from sslzoo.probes import EncoderFeatures as EncoderFeatures
    from sslzoo.probes import probe as probe
    from sslzoo.zoo import ModelInfo as ModelInfo
    from sslzoo.zoo import info as info
    from sslzoo.zoo import list_models as list_models

    __version__: str
else:  # hidden from type checkers, which would take any name for public

    def __getattr__(name: str) -> object:
        if name == "__version__":
            value = import_module("importlib.metadata").version("sslzoo")
        elif name in _MODULES:
            value = getattr(import_module(f"sslzoo.{_MODULES[name]}"), name)
        else:
            raise AttributeError(f"module 'sslzoo' has no attribute {name!r}; it has {', '.join(_MODULES)}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
