"""What a run of the suite says, from ginkgo's JSON report, and four of them side by side."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

# The one spec whose image exists only elsewhere: it is asked for by the digest of its manifest.
DIGEST_SPEC = "public image with digest should be pulled and removed"
DIGEST_REASON = "its image is asked for by digest, so that nobody can build it again"
_BENCHMARK = re.compile(r"\bbenchmark\b", re.IGNORECASE)


class Outcome(StrEnum):
    """How one spec ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One spec of the suite and how it ended; `why` in the suite's own words, "" when it passed."""

    name: str
    outcome: Outcome
    seconds: float
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of the suite."""

    title: str
    specs: tuple[Spec, ...]
    seconds: float = 0.0
    seed: int = 0  # of the random order
    trouble: str = ""  # why there is no complete report, "" when there is
    left: tuple[str, ...] = ()  # what the host holds more than before, where that was looked at

    def count(self, outcome: Outcome) -> int:
        """How many specs ended that way."""
        return sum(spec.outcome is outcome for spec in self.specs)

    def of(self, outcome: Outcome) -> list[Spec]:
        """The specs that ended that way, by name."""
        return sorted((spec for spec in self.specs if spec.outcome is outcome), key=lambda spec: spec.name)

    def document(self) -> dict[str, Any]:
        """The run for summary.json."""
        return {
            "title": self.title,
            "trouble": self.trouble,
            "left_behind": list(self.left),
            "seconds": round(self.seconds, 1),
            "seed": self.seed,
            **{outcome.value: self.count(outcome) for outcome in Outcome},
            "failures": {spec.name: spec.why for spec in self.of(Outcome.FAILED)},
            "skips": {spec.name: spec.why for spec in self.of(Outcome.SKIPPED)},
            "spec_seconds": {spec.name: round(spec.seconds, 3) for spec in sorted(self.specs, key=lambda s: s.name)},
        }


def read(file: Path) -> tuple[int, tuple[Spec, ...]]:
    """The seed and the specs of a JSON report that were meant to run.

    Raises OSError, ValueError or LookupError when it is none.
    """
    suites = json.loads(file.read_text(encoding="utf-8"))
    entries = (entry for suite in suites for entry in suite["SpecReports"] or ())
    specs = tuple(spec for entry in entries if (spec := _spec(entry)) is not None)
    return int(suites[0]["SuiteConfig"]["RandomSeed"]), specs


def _spec(entry: Mapping[str, Any]) -> Spec | None:
    containers = [re.sub(r"^\[[a-z0-9.]+\] ", "", text) for text in entry["ContainerHierarchyTexts"] or ()]
    # Nodes around all specs are of no interest unless they failed: then nothing ran.
    if entry["LeafNodeType"] != "It" and entry["State"] in ("passed", "skipped"):
        return None
    name = " ".join([*containers, entry["LeafNodeText"] or entry["LeafNodeType"]])
    if _BENCHMARK.search(name):
        return None
    message = str(entry.get("Failure", {}).get("Message", "")).strip()
    seconds = float(entry.get("RunTime", 0)) / 1e9
    match entry["State"]:
        case "passed":
            return Spec(name=name, outcome=Outcome.PASSED, seconds=seconds)
        case "skipped" | "pending":
            if not message and DIGEST_SPEC not in name:
                return None  # not in focus
            return Spec(name=name, outcome=Outcome.SKIPPED, seconds=seconds, why=message or DIGEST_REASON)
        case state:
            location = entry.get("Failure", {}).get("Location", {})
            where = f"{Path(location.get('FileName', '')).name}:{location.get('LineNumber', 0)}"
            why = f"{state} at {where}: {message}"
            return Spec(name=name, outcome=Outcome.FAILED, seconds=seconds, why=why)


def table(runs: Sequence[Run]) -> str:
    """The runs side by side: totals, then every spec that did not pass everywhere."""
    outcomes = [{spec.name: spec.outcome for spec in run.specs} for run in runs]
    names = sorted({name for column in outcomes for name in column})
    interesting = [
        n for n in names if any(column.get(n, Outcome.PASSED) is not Outcome.PASSED for column in outcomes)
    ]
    rows = [["", *(str(number) for number in range(1, len(runs) + 1))]]
    rows += [[outcome.value, *(str(run.count(outcome)) for run in runs)] for outcome in Outcome]
    rows += [["seconds", *(f"{run.seconds:.0f}" for run in runs)]]
    rows += [[_short(name), *(str(column.get(name, "-")) for column in outcomes)] for name in interesting]
    widths = [max(len(row[i]) for row in rows) for i in range(len(runs) + 1)]
    lines = [f"  {number}  {run.title}" for number, run in enumerate(runs, 1)]
    lines += [f"     {run.trouble}" for run in runs if run.trouble]
    for row in rows:
        lines.append(
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        )
    return "\n".join(lines)


def closing_line(runs: Sequence[Run]) -> str:
    """The sum of all runs, in one line."""
    passed, failed, skipped = (sum(run.count(outcome) for run in runs) for outcome in Outcome)
    return f"{passed} passed, {failed} failed, {skipped} skipped"


def _short(name: str) -> str:
    return name if len(name) <= 90 else f"{name[:40]} … {name[-47:]}"
