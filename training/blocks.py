"""What several papers share: the two-layer head, the momentum teacher, batches and statistics over all processes."""

import copy
from collections.abc import Collection
from typing import Any, TypeVar

import timm.layers
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

M = TypeVar("M", bound=nn.Module)


def one_of(setting: str, value: str, possible: Collection[str]) -> None:
    """Raise a ValueError that names the setting, its value and what is possible, if the value is none of these."""
    if value not in possible:
        raise ValueError(f"{setting} = {value!r}: needs one of {', '.join(possible)}.")


def mlp(
    in_dim: int, hidden_dim: int, out_dim: int, *, hidden_bias: bool = True, out_bias: bool = False
) -> nn.Sequential:
    """Linear, BN, ReLU, Linear: (B, in_dim) -> (B, out_dim), no normalisation of the output."""
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim, bias=hidden_bias),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, out_dim, bias=out_bias),
    )


def momentum_teacher(student: M) -> M:
    """A copy of `student` that gets no gradient: follow the student with `momentum_update`."""
    teacher = copy.deepcopy(student)
    teacher.requires_grad_(False)
    return teacher


@torch.no_grad()
def momentum_update(teacher: nn.Module, student: nn.Module, tau: float) -> None:
    """Teacher <- tau * teacher + (1 - tau) * student, for the parameters; the teacher keeps its own BN statistics."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - tau)


class _SyncBatchNorm(nn.Module):
    """Batch norm with the statistics of the global batch where torch's own SyncBatchNorm refuses to run: on CPUs.

    Same parameter and buffer names as the layer it replaces, so that checkpoints fit both ways.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        if norm.momentum is None or not norm.track_running_stats:
            raise ValueError(f"several processes need batch norm with running statistics and a momentum, got {norm}.")
        self.eps, self.momentum = norm.eps, norm.momentum
        self.weight, self.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        # timm's BatchNormAct2d has its activation inside
        self.drop, self.act = getattr(norm, "drop", nn.Identity()), getattr(norm, "act", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C) or (B, C, H, W), any floating type."""
        if self.training:
            mean, var = self._global_statistics(x.float())
        else:
            mean, var = self.running_mean, self.running_var
        y = (x.float() - _per_channel(mean, x)) * _per_channel(torch.rsqrt(var + self.eps), x)
        if self.weight is not None:
            y = y * _per_channel(self.weight, x) + _per_channel(self.bias, x)
        y = self.act(self.drop(y.to(x.dtype)))
        assert isinstance(y, Tensor)
        return y

    def _global_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        dims = [d for d in range(x.ndim) if d != 1]
        count = x.numel() // x.shape[1] * torch.distributed.get_world_size()  # every process has an equal share
        mean = sum_over_processes(x.sum(dims)) / count
        var = sum_over_processes((x - _per_channel(mean, x)).square().sum(dims)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        return mean, var


def _per_channel(vector: Tensor, like: Tensor) -> Tensor:
    """(C,) shaped to broadcast over (B, C, ...)."""
    return vector.view(1, -1, *[1] * (like.ndim - 2))


class _SumOverProcesses(torch.autograd.Function):
    """Sum of every process's tensor; each gets the sum of the gradients that the processes have for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        torch.distributed.all_reduce(total)
        return total


def sum_over_processes(x: Tensor) -> Tensor:
    """Sum of the tensors that all processes have, with its gradient."""
    total: Tensor = _SumOverProcesses.apply(x)
    return total


def gather_over_processes(x: Tensor) -> tuple[Tensor, int]:
    """What all processes have, with its gradient.

    Args:
        x: (n, D), the same n everywhere.

    Returns:
        (n * processes, D), in the order of the processes; and where this one's rows begin.
    """
    if not torch.distributed.is_initialized():
        return x, 0
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    own = torch.zeros(world, dtype=x.dtype, device=x.device)
    own[rank] = 1
    return sum_over_processes(own[:, None, None] * x).flatten(0, 1), rank * len(x)


def sync_batchnorm(module: nn.Module, device: torch.device) -> None:
    """Give every batch norm inside `module` the statistics of the global batch over all processes, in place."""
    for name, child in module.named_children():
        if not isinstance(child, _BatchNorm):
            sync_batchnorm(child, device)
        elif device.type == "cuda":
            setattr(module, name, timm.layers.convert_sync_batchnorm(child))
        else:
            setattr(module, name, _SyncBatchNorm(child))
