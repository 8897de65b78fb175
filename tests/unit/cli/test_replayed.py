"""What a replay came to is told in a sentence; what is chosen anew each time makes no difference."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandboxd.cli import replayed
from sandboxd.pb.host.v1 import host_pb2 as host

THEN, NOW = ("a" * 64, "/run/netns/then"), ("b" * 64, "/run/netns/now")


def result(of: tuple[str, str], **changes: Any) -> bytes:
    number = "2" if of is THEN else "3"
    document = {
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": f"veth0{number}", "mac": f"02:00:00:00:00:0{number}"},
            {"name": "eth0", "mac": f"02:00:00:00:01:0{number}", "sandbox": of[1]},
        ],
        "ips": [{"address": f"10.0.10.{number}/24", "gateway": "10.0.10.1", "interface": 1}],
    }
    return json.dumps(document | changes).encode()


def step(of: tuple[str, str], stdout: bytes, error: str = "", stderr: bytes = b"", **more: Any) -> host.Step:
    execution = host.PluginExecution(
        command="ADD",
        binary="/opt/bridge",
        env={"CNI_CONTAINERID": of[0], "CNI_NETNS": of[1]},
        stdin=b'{"type": "bridge"}',
        stdout=stdout,
        stderr=stderr,
        exit_code=int(bool(error)),
        duration=2_000_000,
        **more,
    )
    return host.Step(name="cni.add", detail={"plugin": "bridge"}, plugin=execution, error=error)


def failure(of: tuple[str, str], words: str = "no room for") -> host.Step:
    told = json.dumps({"code": 999, "msg": f"{words} {of[0]}"}).encode()
    return step(of, told, "no room", stderr=f"in {of[1]}\n".encode())


def answer(then: host.Step, now: host.Step | None, **more: Any) -> host.ReplayResponse:
    return host.ReplayResponse(recorded=then, replayed=now, scratch_id=NOW[0], netns_path=NOW[1], **more)


@pytest.mark.parametrize(
    ("then", "now", "verdict"),
    [
        (step(THEN, result(THEN)), step(NOW, result(NOW)), "It succeeds again, with the same result."),
        (
            step(THEN, result(THEN)),
            step(NOW, result(NOW, dns={"nameservers": ["1.1.1.1"]})),
            "It succeeds again, with another result.",
        ),
        (failure(THEN), failure(NOW), "It fails again, in the same way."),
        (failure(THEN), failure(NOW, "no more room for"), "It fails again, in another way."),
        (failure(THEN), step(NOW, result(NOW)), "It succeeds now; it had failed."),
        (step(THEN, result(THEN)), failure(NOW), "It fails now; it had succeeded."),
        (step(THEN, result(THEN)), None, "It was not reached."),
    ],
)
def test_the_verdict_is_a_sentence(then: host.Step, now: host.Step | None, verdict: str) -> None:
    told = answer(then, now, error="" if now else "ADD before, which comes before it, failed")
    assert replayed.again(told) == verdict
    assert verdict in replayed.text(told, "default/web").plain
    assert replayed.as_dict(told)["verdict"] == verdict


def test_of_two_that_differ_the_difference_is_shown() -> None:
    told = answer(step(THEN, result(THEN)), step(NOW, result(NOW, dns={"search": ["x"]})))
    assert any("search" in line and line.startswith("+ ") for line in replayed.differences(told))
    told = answer(failure(THEN), failure(NOW, "full:"))
    assert any("full:" in line for line in replayed.differences(told))


def test_two_that_hang_are_the_same_however_long() -> None:
    then = step(THEN, b"", "hangs", timed_out=True)
    now = step(NOW, b"", "hangs", timed_out=True)
    now.plugin.duration = 99_000_000
    assert replayed.differences(answer(then, now)) == []


def test_everything_that_was_run_and_changed_is_told_in_order() -> None:
    told = answer(
        failure(THEN),
        failure(NOW),
        before=[step(NOW, result(NOW))],
        after=[step(NOW, b"")],
        changed=["host port 8080 is 50000"],
    )
    lines = replayed.text(told, "default/web", verbose=True).plain.splitlines()
    assert lines[0] == "Replay of ADD bridge of pod default/web"
    assert lines[1] == "    in the scratch namespace /run/netns/now (removed again)"
    assert lines[2] == "    not as recorded: host port 8080 is 50000"
    labels = [
        line[:13].strip() for line in lines if line[:13].strip() in ("before it", "recorded", "now", "after it")
    ]
    assert labels == ["before it", "recorded", "now", "after it"]
    assert any("CNI_NETNS=/run/netns/now" in line for line in lines)


def test_what_is_kept_or_left_says_how_to_go_on() -> None:
    kept = replayed.text(answer(step(THEN, result(THEN)), step(NOW, result(NOW)), kept=True), "web").plain
    assert "(kept)" in kept and "ip netns exec now ip addr" in kept and "sandboxctl debts retry bbbbbbbbbbbb" in kept
    left = replayed.text(answer(failure(THEN), failure(NOW), left="DEL failed"), "web").plain
    assert "It could not be undone: DEL failed" in left and "sandboxctl debts forgive bbbbbbbbbbbb" in left
