"""``python -m bench``: the command line, from a clone that is not installed.

``cuda-acceptance`` is reached without the command line's library, so that it runs on a machine that has little.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

ACCEPTANCE = "cuda-acceptance"


def accept(arguments: Sequence[str]) -> int:
    """Check and time everything on CUDA, then write the page; the exit status.

    0: all is right; 1: something of ours is wrong, or nothing on CUDA can be used; 2: bad input; 130: stopped by hand,
    with a page of what was done.
    """
    from bench import cuda_acceptance, nvml
    from impls import SpecError
    from reports import acceptance

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: workers end, the page is written
    options = cuda_acceptance.parse(arguments)
    stopped = False
    try:
        if not options.page_only:
            cuda_acceptance.run(options)
    except KeyboardInterrupt:
        stopped = True
    except cuda_acceptance.NoDeviceError as reason:
        print(f"layerbench: nothing on CUDA can be used: {reason}\n{WITHOUT_A_GPU}", file=sys.stderr)
        return 1
    except (SpecError, nvml.DeviceError, OSError) as error:
        print(f"layerbench: {error}", file=sys.stderr)
        return 2
    files = cuda_acceptance.files(options.output)
    if not files:
        return 130
    paths, is_right = acceptance.write_page(options.output, files)
    print(*paths, sep="\n")
    if options.page_only:  # figures take longer than the time that is kept for the page
        print(*acceptance.write_results(options.output, files), sep="\n")
    return 130 if stopped else 0 if is_right else 1


WITHOUT_A_GPU = (
    "Without a GPU: `layerbench list` says what is missing, `pytest -k cuda` emulates and compiles every\n"
    "kernel, and docs/new-gpu.md says what to install where there is one."
)


def main() -> None:
    """One command needs nothing but the standard library to be read; the others are click's."""
    if sys.argv[1:2] == [ACCEPTANCE]:
        sys.exit(accept(sys.argv[2:]))
    from bench.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
