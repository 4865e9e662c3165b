"""The device a model runs on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from h2osim.models.loading import Model
from h2osim.support.errors import UserError


def check_device(device: str) -> None:
    """UserError where there is no such device (cpu, cuda, cuda:1), before a model is loaded."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UserError(f"device {device!r}: expected cpu, cuda or cuda:1")
    with _told(device):
        torch.empty(0, device=device)


def placed(loaded: Model, device: str) -> Model:
    """The model with its weights on a device; UserError where there is none, or no room."""
    check_device(device)
    with _told(device):
        loaded.model.to(torch.device(device))
    return loaded


@contextmanager
def _told(device: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, AssertionError) as error:  # no CUDA, no such device, no room there
        raise UserError(f"device {device}: {str(error).splitlines()[0]}") from None
