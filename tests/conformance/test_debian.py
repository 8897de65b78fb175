"""Sources are asked for where the machine's own packages come from, and nowhere else."""

from __future__ import annotations

from tests.conformance import busybox, debian

STANZAS = """\
Types: deb
# a comment
URIs: http://debian.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://vendor.example/apt
Suites: nodistro
Components: main

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb-src
URIs: http://sources.example/debian
Suites: bookworm
Components: main
"""


def test_stanzas_of_the_release_are_repeated_for_sources() -> None:
    """Vendors' places, disabled ones and those without packages are left out; the keys stay."""
    made = debian.source_stanzas(STANZAS, "bookworm")
    assert made.count("URIs:") == 1
    assert "Types: deb-src\n" in made
    assert "http://debian.example/debian" in made
    assert "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg" in made


def test_lines_of_the_release_are_repeated_for_sources() -> None:
    """The one-line style says the same with options in brackets."""
    text = """\
# deb http://off.example/debian bookworm main
deb [signed-by=/k.gpg] http://debian.example/debian bookworm main contrib
deb http://debian.example/debian-security bookworm-security main
deb http://vendor.example/apt cloud-bookworm main
deb-src http://debian.example/debian bookworm main
"""
    assert debian.source_lines(text, "bookworm").splitlines() == [
        "deb-src [signed-by=/k.gpg] http://debian.example/debian bookworm main contrib",
        "deb-src http://debian.example/debian-security bookworm-security main",
    ]


def test_nothing_of_the_release_gives_nothing() -> None:
    """An entry for another release is no place to fetch this one's sources from."""
    assert debian.source_stanzas(STANZAS, "trixie") == ""
    assert debian.source_lines("deb http://debian.example/debian bookworm main\n", "trixie") == ""


def test_busybox_settings_replace_what_the_configuration_says() -> None:
    """Each setting is there once, as wished, whatever was there; all others stay."""
    given = "CONFIG_TC=y\n# CONFIG_STATIC is not set\n# CONFIG_FEATURE_SH_NOFORK is not set\nCONFIG_LS=y\n"
    made = busybox.configured(given).splitlines()
    assert "CONFIG_LS=y" in made
    assert made.count("CONFIG_STATIC=y") == 1
    assert "# CONFIG_STATIC is not set" not in made
    assert "CONFIG_TC=y" not in made
    assert busybox.unsettled(busybox.configured(given)) == []


def test_a_busybox_setting_that_was_not_taken_is_named() -> None:
    """make oldconfig drops what it does not know and keeps what depends on other settings."""
    made = busybox.configured("").replace("CONFIG_STATIC=y\n", "").replace("# CONFIG_TC is not set", "CONFIG_TC=y")
    assert busybox.unsettled(made) == ["STATIC", "TC"]
