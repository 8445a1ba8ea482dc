"""Dense layer: one file is one implementation.

forward(x, w, b, out), grad_weights(x, dy, dw, db), grad_input(dy, w, dx) on a DenseSpec; see impls.contract.
"""
