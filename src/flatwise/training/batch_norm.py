"""BatchNorm whose statistics are those of the whole batch, also where several processes share it.

`torch.nn.SyncBatchNorm` does so on GPUs only. Without either, every process would normalise by its own samples, and a run would
depend on how many processes there are.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # the layer without a check of the number of dimensions

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""The layers that are replaced; subclasses are somebody's own, and stay what they are."""


class BatchNormOverProcesses(_BatchNorm):
    """A BatchNorm that, in training, takes mean and variance over the samples of all processes, however many each has.

    All of them have to call it in step. In evaluation mode it is the layer that it was, on each process alone.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Inputs are [B, C, ...]; the layer that this one was has checked more, and torch asks for the method."""

    def forward(self, input: Tensor) -> Tensor:
        """Inputs [B, C, ...] to the same shape and dtype; sums are in at least float32."""
        if not self.training:
            return super().forward(input)
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        dims = [d for d in range(input.ndim) if d != 1]
        ones = wide.new_full((1,), input.numel() / input.shape[1])
        sums, count = summed(torch.cat([wide.sum(dims), ones])).split([input.shape[1], 1])
        mean = sums / count
        centred = wide - _by_channel(mean, input)
        variance = summed(centred.square().sum(dims)) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        normed = centred * _by_channel((variance + self.eps).rsqrt(), input)
        return self._scaled(normed, input).to(input.dtype)

    def _scaled(self, normed: Tensor, like: Tensor) -> Tensor:
        if not self.affine:
            return normed
        return normed * _by_channel(self.weight, like) + _by_channel(self.bias, like)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """The running statistics, where there are some: an exponential average, or with momentum None a plain one."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        factor = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
        self.running_var.lerp_(variance.to(self.running_var.dtype), factor)


def share_statistics(model: nn.Module) -> None:
    """Let the BatchNorm layers of a model normalise by the batch of all processes. Names, weights and buffers stay."""
    for module in model.modules():
        if type(module) in PLAIN:
            module.__class__ = BatchNormOverProcesses


def summed(x: Tensor) -> Tensor:
    """The sum over all processes, differentiable: of a loss that is a sum over processes."""
    return cast(Tensor, _Summed.apply(x))


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return summed(grad_outputs[0])


def _by_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view([1, -1] + [1] * (like.ndim - 2))
