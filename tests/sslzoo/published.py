"""Checkpoints of the structure in which authors publish theirs, with random weights: one function for each family."""

import io
import sys
from collections import OrderedDict, namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
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


def network(arch: str = THIN, *, seed: int = 0, in_channels: int = 3, last_stride: int = 2) -> nn.Module:
    """torchvision's ResNet with random weights and batch norms that do something, without classifier."""
    torch.manual_seed(seed)
    net = _thin() if arch == THIN else getattr(torchvision.models, arch)(weights=None)
    net.fc = nn.Identity()
    if in_channels != 3:
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
