"""Prometheus' own tool on what we expose, on the alerting rules, and on every question of the dashboard."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests import observing
from tests.pods import remove_pod, run_pod
from tests.testbed import ROOT, Testbed

pytestmark = pytest.mark.tools

ALERTS_TEST = Path(__file__).with_name("alerts_test.yaml")
# Grafana's variables, which it replaces before it asks.
VARIABLES = {"$__rate_interval": "5m", "$instance": ".*", "$job": "sandboxd"}


def promtool(*arguments: str | Path, stdin: str = "") -> None:
    """Run it; its words are the failure."""
    tool = ROOT / "build" / "tools" / "promtool"
    if not tool.is_file():
        pytest.fail("build/tools/promtool is missing; `make setup-tools` unpacks it", pytrace=False)
    done = subprocess.run([tool, *arguments], input=stdin, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_a_daemon_exposes_after_a_pods_life_passes_the_lint(containerd_bin: Path | None) -> None:
    with Testbed(containerd_bin=containerd_bin) as bed:
        bed.default_network()
        bed.start_daemon(metrics={"address": "127.0.0.1:9477"})
        remove_pod(bed, run_pod(bed))
        status, text = bed.http_get("127.0.0.1", 9477, "/metrics")
    assert status == 200
    promtool("check", "metrics", stdin=text)


def test_the_alerting_rules_are_valid() -> None:
    promtool("check", "rules", observing.ALERTS)


def test_each_alert_fires_when_it_should_and_none_without_a_reason() -> None:
    cases = yaml.safe_load(ALERTS_TEST.read_text("utf-8"))["tests"]
    fired = [check["alertname"] for case in cases for check in case["alert_rule_test"] if check["exp_alerts"]]
    silent = [check["alertname"] for case in cases for check in case["alert_rule_test"] if not check["exp_alerts"]]
    alerts = [rule["alert"] for rule in observing.alerts()]
    assert fired == silent == alerts
    promtool("test", "rules", ALERTS_TEST)


def test_what_the_dashboard_asks_is_promql(tmp_path: Path) -> None:
    rules = []
    for number, (where, expression) in enumerate(observing.expressions().items()):
        if where.startswith("panel "):
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            assert "$" not in expression, where
            rules.append({"record": f"asked:{number}", "expr": expression, "labels": {"where": where}})
    assert len(rules) > 40
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    promtool("check", "rules", file)


def test_the_dashboard_leaves_the_data_source_and_the_instances_to_its_user() -> None:
    text = observing.DASHBOARD.read_text("utf-8")
    sources = set(re.findall(r'"uid": "([^"]*)"', text))
    assert sources == {"${datasource}", "sandboxd"}, "the latter is the dashboard's own"
