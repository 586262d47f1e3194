"""Multiply-accumulates of whatever runs, counted operation by operation."""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

ResultT = TypeVar("ResultT")

_aten = torch.ops.aten


def count_macs(fn: Callable[[], ResultT]) -> tuple[int, ResultT]:
    """Run ``fn`` and return (MACs, its result).

    Formulas are those of `torch.utils.flop_counter` (2 FLOPs a MAC) plus those here for kernels it lacks.
    Attention under a causal mask counts in full, as there. Unlike `FlopCounterMode` this registers no module
    hooks, so that the run is the same as without it, bit for bit.
    """
    counter = _Counter()
    with counter:
        result = fn()
    return counter.macs, result


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        packet = getattr(func, "_overloadpacket", func)
        own, known = _FORMULAS.get(packet), flop_registry.get(packet)
        if own is None and known is None and isinstance(func, torch._ops.OpOverload):
            with self:  # operations that torch only composes of others, as in inference mode
                result = func.decompose(*args, **named)
            if result is not NotImplemented:
                return result
        result = func(*args, **named)
        if own is not None:
            self.macs += own(*args, **named)
        elif known is not None:
            self.macs += known(*args, **named, out_val=result) // 2
        return result


def _vector_product(*args: Any, **kwargs: Any) -> int:
    matrix = max((arg for arg in args if isinstance(arg, Tensor)), key=lambda tensor: tensor.numel())
    return matrix.numel()


def _trilinear(*args: Any, **kwargs: Any) -> int:
    """`nn.Bilinear`: one product for each element of the three operands broadcast together."""
    shapes = []
    for tensor, expand in zip(args[:3], args[3:6], strict=True):
        for axis in expand:
            tensor = tensor.unsqueeze(axis)
        shapes.append(tensor.shape)
    return int(math.prod(torch.broadcast_shapes(*shapes)))  # type: ignore[no-untyped-call]


def _convolution_backward(
    gradient: Tensor, inputs: Tensor, weight: Tensor, bias_sizes: Any, *args: Any, **kwargs: Any
) -> int:
    """As many as forward for each of the two gradients wanted; torch's formula is too high with groups."""
    transposed, wanted = args[3], args[6]
    positions = inputs if transposed else gradient
    channels = weight.shape[0]
    forward = positions.numel() // channels * weight.numel()
    return forward * (int(wanted[0]) + int(wanted[1]))


def _attention_forward(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_flop(query, key, value)) // 2


def _attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> int:
    return int(sdpa_backward_flop(gradient, query, key, value)) // 2


def _native_attention(
    query: Tensor, key: Tensor, value: Tensor, width: int, *args: Any, **kwargs: Any
) -> int:
    """Projections of q, k, v and output, 4 T C^2, and both products with the T x T matrix, 2 T^2 C."""
    batch, length = query.shape[:2]
    return batch * (4 * length * width**2 + 2 * length * key.shape[1] * width)


def _encoder_layer(src: Tensor, width: int, *args: Any, **kwargs: Any) -> int:
    feed_forward = next(arg for arg in args[12:] if isinstance(arg, Tensor) and arg.dim() == 2)
    positions = src.numel() // width
    return _native_attention(src, src, src, width) + positions * 2 * feed_forward.numel()


def _recurrent_forward(
    inputs: Tensor, weight_input: Tensor, weight_hidden: Tensor, *args: Any, **kwargs: Any
) -> int:
    """One direction of one layer: each step multiplies by both matrices."""
    steps = inputs.numel() // inputs.shape[-1]
    return steps * (weight_input.numel() + weight_hidden.numel())


def _recurrent_backward(*args: Any, **kwargs: Any) -> int:
    return 2 * _recurrent_forward(*args, **kwargs)


def _cudnn_recurrent_forward(inputs: Tensor, weights: list[Tensor], *args: Any, **kwargs: Any) -> int:
    """All directions and layers: each step multiplies by all matrices."""
    steps = inputs.numel() // inputs.shape[-1]
    return steps * sum(weight.numel() for weight in weights if weight.dim() == 2)


def _cudnn_recurrent_backward(*args: Any, **kwargs: Any) -> int:
    return 2 * _cudnn_recurrent_forward(*args, **kwargs)


_FORMULAS: dict[Any, Callable[..., int]] = {
    _aten.mv: _vector_product,
    _aten.addmv: _vector_product,
    _aten.dot: _vector_product,
    _aten._trilinear: _trilinear,
    _aten.convolution_backward: _convolution_backward,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention_forward,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    _aten._native_multi_head_attention: _native_attention,
    _aten._transformer_encoder_layer_fwd: _encoder_layer,
    _aten.mkldnn_rnn_layer: _recurrent_forward,
    _aten.mkldnn_rnn_layer_backward: _recurrent_backward,
    _aten._cudnn_rnn: _cudnn_recurrent_forward,
    _aten._cudnn_rnn_backward: _cudnn_recurrent_backward,
}
