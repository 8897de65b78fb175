"""What `make bench-pull` makes of what it measured: medians, ratios, goals, the table. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.bench.table import aligned

LARGE = "one-layer"
OURS, THEIRS = "sandboxd", "plugin"
QUIET, BUSY = "quiet", "busy"
CONDITIONS = (QUIET, BUSY)

# What a ratio of medians, sandboxd's to the plugin's, may be at most: of time by image, of processor time.
MOST_RATIO: Mapping[str, float] = {LARGE: 1.0, "many-layers": 0.7}
MOST_PROCESSOR_RATIO = 1.1
MOST_MEMORY = 150_000_000  # bytes, of the daemon while it pulls the large image


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """One pull: its time, and the processor time of all who took part, of which two are told apart. Seconds."""

    seconds: float
    processor: float
    daemon: float = 0.0  # sandboxd's
    containerd: float = 0.0


@dataclass(slots=True, kw_only=True)
class Figures:
    """What was measured with one containerd: pulls in order, by condition and image, then by who pulled."""

    containerd: str  # its version
    pulls: dict[tuple[str, str], dict[str, list[Pull]]] = field(default_factory=dict)
    peak_bytes: list[int] = field(default_factory=list)  # of the daemon, for each pull of the large image

    def median(self, condition: str, image: str, who: str, what: str = "seconds") -> float:
        """The median of a field of `Pull`."""
        values: list[float] = [getattr(pull, what) for pull in self.pulls[condition, image][who]]
        return statistics.median(values)

    def ratio(self, condition: str, image: str, what: str = "seconds") -> float:
        """sandboxd's median over the plugin's."""
        return self.median(condition, image, OURS, what) / self.median(condition, image, THEIRS, what)

    def goals(self) -> dict[str, bool]:
        """Each goal in words, and whether it was met."""
        met = {}
        for condition, image in self.pulls:
            for what, most in (("seconds", MOST_RATIO[image]), ("processor", MOST_PROCESSOR_RATIO)):
                ratio = self.ratio(condition, image, what)
                words = "processor time" if what == "processor" else "time"
                met[f"{image}, {condition}: ratio of {words} {ratio:.2f}, at most {most:.2f}"] = ratio <= most
        if self.peak_bytes:
            peak = max(self.peak_bytes)
            met[f"peak memory {peak / 1e6:.0f} MB, below {MOST_MEMORY / 1e6:.0f}"] = peak < MOST_MEMORY
        return met

    def document(self) -> dict[str, Any]:
        """For pull.json."""
        images: dict[str, dict[str, Any]] = {}
        for (condition, image), pulls in self.pulls.items():
            images.setdefault(image, {})[condition] = {
                what: {
                    "ratio": round(self.ratio(condition, image, what), 4),
                    "most_ratio": most,
                    "median": {who: round(self.median(condition, image, who, what), 4) for who in pulls},
                    "all": {who: [round(getattr(pull, what), 4) for pull in all_] for who, all_ in pulls.items()},
                }
                for what, most in (("seconds", MOST_RATIO[image]), ("processor", MOST_PROCESSOR_RATIO))
            } | {
                "processor_of": {
                    who: {
                        what: round(self.median(condition, image, who, what), 4) for what in ("daemon", "containerd")
                    }
                    for who in pulls
                }
            }
        peak = max(self.peak_bytes, default=0)
        return {"containerd": self.containerd, "images": images, "peak_bytes": peak, "most_peak_bytes": MOST_MEMORY}


def table(measured: Mapping[str, Figures]) -> str:
    """Medians side by side."""
    head = ("containerd", "image", "machine", "", "sandboxd", "plugin", "ratio", "goal", "peak MB")
    return aligned([head, *(row for name, figures in measured.items() for row in _rows(name, figures))])


def _rows(name: str, figures: Figures) -> Iterator[tuple[str, ...]]:
    for condition, image in figures.pulls:
        for what, most in (("seconds", MOST_RATIO[image]), ("processor", MOST_PROCESSOR_RATIO)):
            medians = [f"{figures.median(condition, image, who, what):.2f} s" for who in (OURS, THEIRS)]
            ratio, goal = f"{figures.ratio(condition, image, what):.2f}", f"<= {most:.2f}"
            first = what == "seconds"
            peak = f"{max(figures.peak_bytes) / 1e6:.0f}" if first and image == LARGE and figures.peak_bytes else ""
            kind = "time" if first else "processor"
            yield (f"{name} {figures.containerd}", image, condition, kind, *medians, ratio, goal, peak)
