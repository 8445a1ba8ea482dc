"""The page for teaching is true: every line of it runs, and prints what stands there."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np

PAGE = Path(__file__).parent.parent / "docs" / "walkthrough.md"


def test_the_walkthrough_shows_what_the_code_prints(capsys):
    with np.printoptions():
        result = doctest.testfile(str(PAGE), module_relative=False, encoding="utf-8")
    assert result.failed == 0, capsys.readouterr().out
    assert result.attempted > 50


def test_the_walkthrough_never_prints_that_two_ways_differ():
    """A page whose comparisons fail would agree with the code all the same."""
    assert "False" not in PAGE.read_text("utf-8")
