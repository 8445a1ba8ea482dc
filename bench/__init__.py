"""Everything that measures: suites, inputs, checks, clocks, workers, rows."""

__version__ = "0.1.0"
