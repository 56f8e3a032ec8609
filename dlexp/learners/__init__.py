"""What one run does, as pure functions: learners from examples, from a function, of two players, in phases."""

from dlexp.learners.adversarial import AdversarialState, Players, adversarial
from dlexp.learners.descent import DescentState, Step, descent
from dlexp.learners.measuring import computed, measuring
from dlexp.learners.phases import OfSeeds, Phases, in_phases, once_a_seed, starting_from, with_weights
from dlexp.learners.propagation import propagation
from dlexp.learners.supervised import State, supervised

__all__ = [
    "AdversarialState",
    "DescentState",
    "OfSeeds",
    "Phases",
    "Players",
    "State",
    "Step",
    "adversarial",
    "computed",
    "descent",
    "in_phases",
    "measuring",
    "once_a_seed",
    "propagation",
    "starting_from",
    "supervised",
    "with_weights",
]
