"""Convolution: one file is one implementation, and its name is the file's name.

forward(x, w, b, out), grad_weights(x, dy, dw, db), grad_input(dy, w, dx) on a ConvSpec; see impls.contract.
"""
