"""What is said about metrics: in the documentation, on the dashboard, in the alerts; and what a daemon exposes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.testbed import ROOT

DOCUMENT = ROOT / "docs" / "metrics.md"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboard.json"
ALERTS = ROOT / "deploy" / "grafana" / "alerts.yaml"

_ROW = re.compile(r"^\| `(?P<name>\w+)` \| (?P<kind>\w+) \|(?P<labels>[^|]*)\|[^|]+\|$", re.MULTILINE)
_NAME = re.compile(r"\b(?:sandboxd|process)_\w+")
_LABELLED = re.compile(r"(?P<name>\b(?:sandboxd|process)_\w+)\{(?P<selectors>[^}]*)\}")
_SELECTOR = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_ADDED = {"job", "instance"}  # by Prometheus


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric, by the name of its family as Prometheus knows it: a counter's ends in _total."""

    name: str
    kind: str
    labels: frozenset[str]


def documented() -> dict[str, Metric]:
    """The table in docs/metrics.md."""
    found = {}
    for row in _ROW.finditer(DOCUMENT.read_text("utf-8")):
        labels = frozenset(re.findall(r"`(\w+)`", row["labels"]))
        found[row["name"]] = Metric(name=row["name"], kind=row["kind"], labels=labels)
    return found


def exposed(text: str) -> dict[str, Metric]:
    """The families of an exposition, as Prometheus' parser reads them, with the labels of their samples."""
    found = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = frozenset(label for sample in family.samples for label in sample.labels) - {"le"}
        found[name] = Metric(name=name, kind=family.type, labels=labels)
    return found


def values(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """(name, labels) → value of each sample."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def alerts() -> list[dict[str, Any]]:
    """The alerting rules."""
    return [rule for group in yaml.safe_load(ALERTS.read_text("utf-8"))["groups"] for rule in group["rules"]]


def expressions() -> dict[str, str]:
    """What is asked in PromQL, by where: every target of the dashboard, and every alert."""
    asked = {f"alert {rule['alert']}": str(rule["expr"]) for rule in alerts()}
    for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            asked[f"panel {panel['title']} ({panel['id']}) {target['refId']}"] = str(target["expr"])
    return asked


def demanded(expression: str) -> Iterator[tuple[str, frozenset[str]]]:
    """The metrics that an expression asks for, as families, each with the labels by which it selects."""
    for name in _NAME.findall(expression):
        yield _family(name), frozenset()
    for match in _LABELLED.finditer(expression):
        yield _family(match["name"]), frozenset(_SELECTOR.findall(match["selectors"])) - _ADDED - {"le"}


def _family(name: str) -> str:
    return re.sub(r"_(bucket|sum|count)$", "", name)
