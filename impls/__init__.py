"""Everything that computes a layer: interchangeable implementations behind one interface."""

from impls.contract import Implementation, Plan, Unavailable
from impls.registry import get, names, reference, rivals
from impls.specs import DIRECTIONS, OPS, Case, ConvSpec, DenseSpec, PoolSpec, SpecError, parse, parse_case

__all__ = [
    "DIRECTIONS",
    "OPS",
    "Case",
    "ConvSpec",
    "DenseSpec",
    "Implementation",
    "Plan",
    "PoolSpec",
    "SpecError",
    "Unavailable",
    "get",
    "names",
    "parse",
    "parse_case",
    "reference",
    "rivals",
]
