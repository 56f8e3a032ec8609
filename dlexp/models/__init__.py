"""Networks as pure functions of one run: Flax Linen modules behind the `Model` contract."""

from dlexp.models.convolutional import ConvLayer, cnn
from dlexp.models.images import shifted, standardised
from dlexp.models.layers import num_params
from dlexp.models.linen import from_linen
from dlexp.models.perceptron import dense_block, mlp, preactivation_block
from dlexp.models.recurrent import rnn

__all__ = [
    "ConvLayer",
    "cnn",
    "dense_block",
    "from_linen",
    "mlp",
    "num_params",
    "preactivation_block",
    "rnn",
    "shifted",
    "standardised",
]
