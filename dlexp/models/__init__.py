"""Networks as pure functions of one run: Flax Linen modules behind the `Model` contract."""

from dlexp.models.cnn import ConvLayer, cnn
from dlexp.models.linen import from_linen
from dlexp.models.mlp import mlp

__all__ = ["ConvLayer", "cnn", "from_linen", "mlp"]
