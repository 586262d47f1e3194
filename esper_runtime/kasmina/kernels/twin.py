"""The compiled twin of an eager body: the same parameters, forward and backward by native code."""

from torch import Tensor, nn


def arguments(body: nn.Module) -> dict[str, Tensor]:
    """The tensors that compiled parts take after their inputs, by name: parameters, then numeric buffers."""
    buffers = {name: buffer for name, buffer in body.named_buffers() if buffer.is_floating_point()}
    return dict(body.named_parameters()) | buffers
