"""Average pooling: one file is one implementation. forward(x, out), grad_input(x, y, dy, dx) on a PoolSpec.

The sum is divided by the pixels really under the window: padding does not count.
"""
