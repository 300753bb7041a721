"""Fake weights of a model, which have shapes and dtypes but no data, and a meter of the memory of fake tensors."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode


@contextmanager
def fake_weights(model: nn.Module) -> Iterator[None]:
    """Give a meta model fake CPU tensors as weights; on these, unlike on meta tensors, autocast works."""
    with FakeTensorMode():
        for module in model.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                    module._parameters[name] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
            for name, buffer in list(module._buffers.items()):
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        yield


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Return the tensors among an operator's arguments or results, which are alone or in lists."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


class TensorMeter:
    """Counts the memory of the tensors that are added to it.

    Attributes:
        now, peak: bytes of the live storages, now and at most.
    """

    def __init__(self) -> None:
        self.now = self.peak = 0
        self.live: dict[int, tuple[Any, int]] = {}

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage until it is freed; a storage that several tensors share counts once."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.live:
            size = storage.nbytes()
            self.live[key] = weakref.ref(storage, lambda _: self._drop(key)), size
            self.now += size
            self.peak = max(self.peak, self.now)

    def _drop(self, key: int) -> None:
        self.now -= self.live.pop(key)[1]
