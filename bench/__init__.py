"""Everything that measures: suites, inputs, checks, clocks, workers, rows."""
