"""The figures that are kept of networks: where a step's time goes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from bench.profile_training import Profile
from reports import plots, training_plots


def write_profiles(folder: Path, profiles: Mapping[tuple[str, str], Profile]) -> tuple[Path, ...]:
    """A bar chart for each network and implementation that was asked for; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for (network, implementation), profile in profiles.items():
        figure = training_plots.profile(profile, f"{network}, {implementation}")
        written.append(folder / file_name(network, implementation, "profile"))
        plots.save(figure, written[-1])
    return tuple(written)


def file_name(*words: str) -> str:
    """A PNG's name of these words, in characters that every file system takes."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", " ".join(words)).strip("-") + ".png"
