"""What one run does, as pure functions: learners from examples, from a function, from two players, in phases."""

from dlexp.learners.descent import DescentState, Step, descent
from dlexp.learners.measuring import computed, measuring
from dlexp.learners.propagation import propagation
from dlexp.learners.supervised import State, supervised

__all__ = ["DescentState", "State", "Step", "computed", "descent", "measuring", "propagation", "supervised"]
