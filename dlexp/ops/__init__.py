"""Operations of layers, losses and optimizers in the forms that are fast on the platform at hand.

Each gives the numbers of the plain formula that its docstring states, up to rounding. This is the only room that knows
how arrays are stored, what XLA is told, and on which platform a program will run; the other rooms are written as
equations. A hand-written learner gains what they gain by its own `dense`, `relu` and `one_pass`.
"""

from dlexp.ops.batches import in_slices, value_and_grad
from dlexp.ops.compiler import platform
from dlexp.ops.convolution import convolve
from dlexp.ops.dense import dense, feature_axis, from_feature_axis, to_feature_axis
from dlexp.ops.pointwise import block_max, relu, softmax_cross_entropy
from dlexp.ops.storage import FirstLayer
from dlexp.ops.updates import one_pass

__all__ = [
    "FirstLayer",
    "block_max",
    "convolve",
    "dense",
    "feature_axis",
    "from_feature_axis",
    "in_slices",
    "one_pass",
    "platform",
    "relu",
    "softmax_cross_entropy",
    "to_feature_axis",
    "value_and_grad",
]
