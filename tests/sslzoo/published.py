"""Checkpoints of the structure in which authors publish theirs, with random weights: one function for each family."""

import io
import sys
import zipfile
from collections import OrderedDict, namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

State = dict[str, Tensor]


THIN = "resnet10thin"  # what tests put in the place of larger networks
THIN_ARGS = {"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 64]}  # of timm's resnet18
PREACT = "resnetv2thin"  # the same of resnetv2_50bare
PREACT_ARGS = {"layers": [2, 1, 1, 1], "channels": [32, 64, 96, 128]}  # timm wants quarters divisible by 8
VGG = [8, "M", 16, "M", 32, 32, "M", 64, "M", 64, "M"]  # in the place of timm's vgg11


def network(arch: str = THIN, *, seed: int = 0, in_channels: int = 3, last_stride: int = 2) -> nn.Module:
    """torchvision's ResNet with random weights and batch norms that do something, without classifier."""
    torch.manual_seed(seed)
    own = {THIN: _thin, PREACT: partial(PreAct, **PREACT_ARGS), "resnetv2_50bare": PreAct}
    own |= {"vgg11_bn": Features, "vgg16_bn": partial(Features, torchvision.models.vgg.cfgs["D"])}
    net: Any = own[arch]() if arch in own else getattr(torchvision.models, arch)(weights=None)
    net.fc = nn.Identity()
    if arch.startswith("vgg"):
        net.features[0] = nn.Conv2d(in_channels, net.features[0].out_channels, 3, padding=1)
    elif in_channels != 3:
        net.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
    if last_stride == 1:
        for module in net.layer4.modules():
            if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
                module.stride = (1, 1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            module.num_batches_tracked.fill_(500_400)
    return net.eval()


def _thin() -> nn.Module:
    net = torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1])
    net.inplanes = 64
    for number, channels in enumerate(THIN_ARGS["channels"], start=1):
        setattr(net, f"layer{number}", net._make_layer(BasicBlock, channels, 1, stride=1 if number == 1 else 2))
    return net


class Features(nn.Module):
    """A VGG with batch norm up to its last maps, of which the mean is taken."""

    def __init__(self, layers: Any = VGG) -> None:
        super().__init__()
        self.features = torchvision.models.vgg.make_layers(layers, batch_norm=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).mean((2, 3))


class PreActBottleneck(nn.Module):
    """Batch norm and ReLU before each convolution, the shortcut's among them (He et al. 2016b)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        width = after // 4
        self.bn1, self.conv1 = nn.BatchNorm2d(before), nn.Conv2d(before, width, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn3, self.conv3 = nn.BatchNorm2d(width), nn.Conv2d(width, after, 1, bias=False)
        if before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        active = self.bn1(x).relu()
        y = self.conv1(active)
        y = self.conv3(self.bn3(self.conv2(self.bn2(y).relu())).relu())
        return y + (self.shortcut(active) if hasattr(self, "shortcut") else x)


class PreAct(nn.Module):
    """SeLa's network of 2020: pooled right behind the last sum, without batch norm and ReLU."""

    def __init__(self, layers: Any = (3, 4, 6, 3), channels: Any = (256, 512, 1024, 2048)) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1)]
        before = 64
        for depth, after in zip(layers, channels, strict=True):
            stage = []
            for block in range(depth):
                stage.append(PreActBottleneck(before, after, 2 if block == 0 and after != channels[0] else 1))
                before = after
            parts.append(nn.Sequential(*stage))
        self.features = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).flatten(1)


def sobel() -> nn.Module:
    """The first two layers of DeepCluster's networks: grey values, and the edges of them."""
    grey, edges = nn.Conv2d(3, 1, 1), nn.Conv2d(1, 2, 3, padding=1)
    grey.weight.data.fill_(1 / 3)
    edges.weight.data[0, 0] = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
    edges.weight.data[1, 0] = edges.weight.data[0, 0].T
    for layer in (grey, edges):
        layer.bias.data.zero_()
    return nn.Sequential(grey, edges).requires_grad_(False)


def pad_same(net: nn.Module) -> nn.Module:
    """Let torchvision's ResNet pad as TensorFlow's SAME, by an input padded beforehand: not by the way of sslzoo."""

    def pad(module: Any, args: tuple[Tensor]) -> Tensor:
        kernel, stride = (size[0] if isinstance(size, tuple) else size for size in (module.kernel_size, module.stride))
        sides = []
        for n in args[0].shape[:1:-1]:
            total = max((-(-n // stride) - 1) * stride + kernel - n, 0)
            sides += [total // 2, total - total // 2]
        return nn.functional.pad(args[0], sides)

    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.MaxPool2d)) and module.stride in (2, (2, 2)):
            module.padding = 0 if isinstance(module, nn.MaxPool2d) else (0, 0)
            module.register_forward_pre_hook(pad)
    return net


def linear(name: str, rows: int = 8, columns: int = 4) -> State:
    return {f"{name}.weight": torch.randn(rows, columns), f"{name}.bias": torch.randn(rows)}


def prefixed(prefix: str, state: State) -> State:
    return OrderedDict((prefix + key, value) for key, value in state.items())


def saved(tree: Any, *, old: bool = False) -> bytes:
    """What torch.save writes; `old`: as torch before 1.6 did."""
    buffer = io.BytesIO()
    torch.save(tree, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


def encoder(net: nn.Module) -> State:
    return {key: value for key, value in net.state_dict().items() if not key.startswith("fc.")}


def momenta(state: State) -> dict[str, Any]:
    """The state of SGD: a buffer for each parameter."""
    buffers = {n: {"momentum_buffer": torch.randn(2, 3)} for n in range(4)}
    return {"state": buffers, "param_groups": [{"lr": 0.05, "params": list(range(4)), "nesterov": False}]}


def simsiam(net: nn.Module) -> bytes:
    heads = {**linear("encoder.fc.0"), "encoder.fc.1.num_batches_tracked": torch.tensor(3), **linear("predictor.0")}
    state = prefixed("module.", {**prefixed("encoder.", encoder(net)), **heads})
    return saved({"epoch": 100, "arch": "resnet50", "state_dict": state, "optimizer": momenta(state)})


def moco(net: nn.Module) -> bytes:
    state = {
        **prefixed("module.encoder_q.", {**encoder(net), **linear("fc.0"), **linear("fc.2")}),
        **prefixed("module.encoder_k.", {**encoder(network(seed=9)), **linear("fc.0")}),
        "module.queue": torch.randn(4, 16),
        "module.queue_ptr": torch.zeros(1, dtype=torch.long),
    }
    return saved({"epoch": 800, "arch": "resnet50", "state_dict": state, "optimizer": momenta(state)})


def sela(net: nn.Module) -> bytes:
    state = OrderedDict({**encoder(net), **linear("fc", 3000, 8)})
    return saved({"state_dict": state, "L": torch.randint(0, 3000, (500, 10))})


def zipped(members: dict[str, bytes], *, compressed: bool = True) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def sela_member(net: nn.Module) -> bytes:
    heads = [linear(f"top_layer{n}", 30, 8) for n in range(10)]
    return saved(OrderedDict({**encoder(net), **{k: v for head in heads for k, v in head.items()}}), old=True)


def sela_preact(net: nn.Module) -> bytes:
    alexnet = saved(OrderedDict(linear("features.0")), old=True)
    return zipped({"alexnet-10x3k-wRot.pth": alexnet, "resnet-10x3k.pth": sela_member(net)})


def deepcluster(net: nn.Module) -> bytes:
    """Before torch counted batches."""
    features = {
        key.replace("features.", "features.module."): value
        for key, value in encoder(net).items()
        if not key.endswith("num_batches_tracked")
    }
    heads = {**linear("classifier.0"), **linear("classifier.3"), **linear("top_layer", 100)}
    state = OrderedDict({**features, **heads, **prefixed("sobel.", sobel().state_dict())})
    return saved({"epoch": 500, "arch": "vgg16", "state_dict": state, "optimizer": momenta(state)}, old=True)


def pycontrast(net: nn.Module) -> bytes:
    heads = {**linear("head.0"), **linear("head.2"), **linear("head_jig.fc1.0"), **linear("head_jig.fc2")}
    model = prefixed("module.", {**prefixed("encoder.", encoder(net)), **heads})
    ema = prefixed("encoder.", encoder(network(seed=9)))
    contrast = {"memory": torch.randn(16, 4)}
    return saved({"model": model, "contrast": contrast, "optimizer": momenta(model), "epoch": 800, "model_ema": ema})


def swav(net: nn.Module) -> bytes:
    heads = {**linear("projection_head.0"), **linear("prototypes.prototypes0")}
    return saved(prefixed("module.", {**encoder(net), **heads}), old=True)


def vissl(net: nn.Module) -> bytes:
    model = {
        "trunk": prefixed("_feature_blocks.", encoder(net)),
        "heads": {**linear("0.clf.0"), **linear("2.clf.0")},
    }
    task = {"base_model": {"model": model, "meters": {}}, "optimizer": momenta(model["trunk"]), "train_phase_idx": 104}
    return saved({"phase_idx": 104, "iteration": 7, "loss": {}, "classy_state_dict": task}, old=True)


def vissl_converted(net: nn.Module) -> bytes:
    state = prefixed("_feature_blocks.", {**encoder(net), **linear("fc1"), **linear("fc2.0")})
    return saved({"model_state_dict": state})


def vissl_bare(net: nn.Module) -> bytes:
    return saved(OrderedDict(encoder(net)))


@contextmanager
def importable(module: str, **names: Any) -> Iterator[None]:
    """Modules that are not installed, with classes for a pickle to name."""
    parts = module.split(".")
    modules = [".".join(parts[: n + 1]) for n in range(len(parts))]
    with pytest.MonkeyPatch.context() as patch:
        for name in modules:
            patch.setitem(sys.modules, name, ModuleType(name))
            if parent := name.rpartition(".")[0]:
                setattr(sys.modules[parent], name.rpartition(".")[2], sys.modules[name])
        for name, value in names.items():
            value.__module__, value.__qualname__ = module, name
            setattr(sys.modules[module], name, value)
        yield


def openmmlab_sobel(net: nn.Module) -> bytes:
    """DeepCluster's; releases 1.x have the filters inside of the backbone."""
    filters = prefixed("sobel_layer.sobel.", sobel().state_dict())
    state = {**filters, **prefixed("backbone.", {**encoder(net), **filters}), **linear("head.fc_cls")}
    return saved({"meta": {"epoch": 200}, "state_dict": {**state, "loss_weight": torch.ones(8)}}, old=True)


def openmmlab(net: nn.Module) -> bytes:
    class HistoryBuffer:
        def __init__(self) -> None:
            self._log_history = np.arange(3.0)
            self._statistics_methods = OrderedDict(mean=HistoryBuffer.mean)

        def mean(self) -> None: ...

    module = "mmengine.logging.history_buffer"
    HistoryBuffer.mean.__module__, HistoryBuffer.mean.__qualname__ = module, "HistoryBuffer.mean"
    state = {**prefixed("backbone.", encoder(net)), **linear("neck.fc"), **linear("head.fc_cls")}
    with importable(module, HistoryBuffer=HistoryBuffer):
        logged = {"log_scalars": OrderedDict({"train/loss": HistoryBuffer()}), "runtime_info": OrderedDict(iter=9)}
        return saved({"meta": {"epoch": 70}, "state_dict": state, "message_hub": logged}, old=True)


def haiku_trees(net: nn.Module, name: str = "res_net50") -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and state of dm-haiku's network with the weights of torchvision's."""
    params: dict[str, Any] = {}
    state: dict[str, Any] = {}
    for key, value in encoder(net).items():
        *where, leaf = key.split(".")
        array = value.numpy()
        module = f"{name}/~/{haiku_module(where)}"
        if array.ndim == 4:
            params[module] = {"w": np.ascontiguousarray(array.transpose(2, 3, 1, 0))}
        elif leaf in ("weight", "bias"):
            params.setdefault(module, {})[{"weight": "scale", "bias": "offset"}[leaf]] = array.reshape(1, 1, 1, -1)
        elif leaf.startswith("running"):
            average = {"average": array.reshape(1, 1, 1, -1), "hidden": array.reshape(1, 1, 1, -1) * 0.9}
            ema = {"running_mean": "mean_ema", "running_var": "var_ema"}[leaf]
            state[f"{module}/~/{ema}"] = {**average, "counter": np.array(7, np.int32)}
    return params, state


def haiku_module(where: list[str]) -> str:
    if len(where) == 1:
        return {"conv1": "initial_conv", "bn1": "initial_batchnorm"}[where[0]]
    group, block, part = int(where[0][-1]) - 1, where[1], where[2]
    kind = "shortcut_" + ("conv", "batchnorm")[int(where[3])] if part == "downsample" else ""
    kind = kind or f"{'conv' if part.startswith('conv') else 'batchnorm'}_{int(part[-1]) - 1}"
    return f"block_group_{group}/~/block_{block}/~/{kind}"


def byol_state(params: Any, state: Any) -> dict[str, Any]:
    """What DeepMind's Checkpointer pickles, but for the classes that it names."""
    experiment = namedtuple("_ByolExperimentState", "online_params target_params online_state target_state opt_state")
    scale = namedtuple("ScaleByLarsState", "mu")
    heads = {"projector/linear": {"w": np.ones((4, 2), np.float32), "b": np.ones(2, np.float32)}}
    heads |= {"classifier": {"w": np.ones((4, 10), np.float32), "b": np.zeros(10, np.float32)}}
    ema = {"projector/batch_norm/~/mean_ema": {"average": np.ones((1, 2), np.float32)}}
    value = experiment({**params, **heads}, {**heads}, {**state, **ema}, ema, [scale(heads), ()])
    return {"experiment_state": value, "step": np.array(312_500), "rng": np.zeros(2, np.uint32)}


class FlatMapping:
    """dm-haiku's mapping, as it pickles itself."""

    def __init__(self, mapping: Any) -> None:
        self.mapping = mapping

    def __reduce__(self) -> Any:
        return FlatMapping, (self.mapping,)


def byol(net: nn.Module) -> bytes:
    """As DeepMind's Checkpointer writes it: by dill, protocol 2."""
    dill = pytest.importorskip("dill")
    params, state = haiku_trees(net)
    tree = byol_state(params, state)
    with importable("haiku._src.data_structures", FlatMapping=FlatMapping):
        experiment = tree["experiment_state"]
        tree["experiment_state"] = experiment._replace(
            online_params=FlatMapping(experiment.online_params), online_state=FlatMapping(experiment.online_state)
        )
        return bytes(dill.dumps(tree, protocol=2))
