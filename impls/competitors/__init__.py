"""What ours is compared with, behind the same record and labelled as such.

Each module has FIGURES, {op: suffixes of its named figures}, and implementation(op, suffix) -> Implementation; it
imports its library only when a plan is made.
"""
