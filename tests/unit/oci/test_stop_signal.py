"""Stop signals: what is known gets its number, and nothing else gets one."""

from __future__ import annotations

import signal

import pytest

from sandboxd.oci import stop_signal
from sandboxd.pb.cri.v1 import api_pb2 as cri


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("SIGTERM", 15),
        ("TERM", 15),
        ("sigterm", 15),
        ("Term", 15),
        ("15", 15),
        ("+15", 15),
        ("015", 15),
        ("9", 9),
        ("SIGQUIT", 3),
        ("SIGUSR1", 10),
        ("usr2", 12),
        ("SIGSTKFLT", 16),
        ("SIGIOT", 6),
        ("SIGCLD", 17),
        ("SIGPOLL", 29),
        ("SIGUNUSED", 31),
        ("32", 32),
        ("33", 33),
        ("64", 64),
        ("SIGRTMIN", 34),
        ("RTMIN", 34),
        ("SIGRTMIN+3", 37),
        ("rtmin+0", 34),
        ("RTMIN+15", 49),
        ("RTMIN+30", 64),
        ("SIGRTMAX", 64),
        ("RTMAX-0", 64),
        ("SIGRTMAX-14", 50),
        ("rtmax-30", 34),
    ],
)
def test_what_docker_accepts_is_accepted(text: str, number: int) -> None:
    assert stop_signal.number(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "0",
        "+",
        "-9",
        "65",
        "99999",
        "9" * 5000,
        "SIG",
        "SIGNOPE",
        "SIG15",
        "SIGSIGTERM",
        " SIGTERM ",
        "SIGTERM\n",
        "SIGTERM\0",
        "15 ",
        "1_5",
        "1e1",
        "0x9",
        "15.0",
        "\u0663",  # a digit, but not one of ours
        "\u00b2",
        "\uff11\uff15",
        "\u017fIGTERM",  # becomes SIGTERM in upper case
        "\u017figterm",
        "SIGK\u0131LL",
        "\u212aILL",
        "\ud800",
        "SIGRTMAX+100",
        "SIGRTMAX+0",
        "SIGRTMIN-1",
        "SIGRTMIN+31",
        "SIGRTMIN+99999",
        "SIGRTMAX-31",
        "SIGRTMAX-64",
        "SIGRTMIN+",
        "SIGRTMIN++1",
        "SIGRTMIN+-1",
        "SIGTERM+1",
        "15+1",
        "RTMIN+\u0663",
    ],
)
def test_what_names_no_signal_has_no_number(text: str) -> None:
    assert stop_signal.number(text) is None


@pytest.mark.parametrize("name", sorted(set(signal.Signals.__members__) - {"SIGRTMIN", "SIGRTMAX"}))
def test_every_name_that_this_machine_knows_has_its_number(name: str) -> None:
    assert stop_signal.number(name) == signal.Signals[name]


@pytest.mark.parametrize("name", sorted(set(cri.Signal.keys()) - {"RUNTIME_DEFAULT"}))
def test_every_signal_that_a_request_can_carry_is_known(name: str) -> None:
    assert stop_signal.number(name.replace("PLUS", "+").replace("MINUS", "-"))
