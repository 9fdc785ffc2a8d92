"""A network read for a while as it is when it is not trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Dropout off for a while."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)
