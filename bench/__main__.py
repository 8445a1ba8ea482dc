"""``python -m bench``: the command line, from a clone that is not installed."""

from bench.cli import main

if __name__ == "__main__":
    main()
