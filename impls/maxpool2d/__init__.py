"""Max pooling: one file is one implementation. forward(x, out), grad_input(x, y, dy, dx) on a PoolSpec.

The gradient goes to the first maximum of a window in row-major order.
"""
