"""Responses as sums of parametric functions whose parameters mean something, in place of layers of weights.

A layer is y = sum_k a_k phi(x; theta_k), phi of one family; layers add up. See docs/adaptive.md.
"""
