"""Networks as pure functions of one run: Flax Linen modules behind the `Model` contract."""

from dlexp.models.convolutional import ConvLayer, cnn
from dlexp.models.equinox import from_equinox
from dlexp.models.images import shifted, standardised
from dlexp.models.layers import dropout, num_params
from dlexp.models.linen import from_linen
from dlexp.models.nnx import from_nnx
from dlexp.models.perceptron import dense_block, mlp, preactivation_block
from dlexp.models.recurrent import rnn

__all__ = [
    "ConvLayer",
    "cnn",
    "dense_block",
    "dropout",
    "from_equinox",
    "from_linen",
    "from_nnx",
    "mlp",
    "num_params",
    "preactivation_block",
    "rnn",
    "shifted",
    "standardised",
]
