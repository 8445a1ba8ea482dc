"""Everything that computes a layer: interchangeable implementations behind one interface."""

from impls.contract import Implementation, Plan, Unavailable
from impls.registry import competitors, get, names, reference
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
    "competitors",
    "get",
    "names",
    "parse",
    "parse_case",
    "reference",
]
