"""An exception in words, whatever its own words do."""

from __future__ import annotations

MOST = 2000
"""Characters that are kept: some libraries put a whole program into their message."""


def worded(error: BaseException, *, named: bool = True) -> str:
    """Its type and text, or its text alone; never raises, and never returns more than MOST characters."""
    name = type(error).__name__
    try:
        text = str(error)
    except Exception as second:  # it is the implementation's own code that runs here
        return f"{name}, and its text cannot be had: {type(second).__name__}"
    whole = f"{name}: {text}" if named else text
    return whole if len(whole) <= MOST else f"{whole[:MOST]} ..."
