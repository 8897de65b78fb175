"""Proxies are chosen as Go and curl choose them."""

from __future__ import annotations

import pytest

from sandboxd.registry.proxies import Proxies

BOTH = Proxies(
    http="http://proxy.test:1",
    https="proxy.test:2",
    no_proxy=" .inner.test, exact.test,10.0.0.0/8 ,*.star.test,port.test:5000,192.0.2.1,[::2]:80, ",
)


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("http://far.test/v2", "http://proxy.test:1"),
        ("https://far.test/v2", "http://proxy.test:2"),
        ("https://a.inner.test", ""),
        ("https://inner.test", "http://proxy.test:2"),
        ("https://exact.test", ""),
        ("https://sub.exact.test", ""),
        ("https://notexact.test", "http://proxy.test:2"),
        ("https://a.star.test", ""),
        ("https://10.1.2.3:5000", ""),
        ("https://11.1.2.3:5000", "http://proxy.test:2"),
        ("https://192.0.2.1", ""),
        ("https://port.test:5000", ""),
        ("https://port.test", "http://proxy.test:2"),
        ("http://localhost:5000", ""),
        ("http://127.0.0.1:5000", ""),
        ("http://[::1]:5000", ""),
    ],
)
def test_the_exceptions_count(url: str, proxy: str) -> None:
    assert BOTH.of(url) == proxy


def test_a_star_excepts_everything_and_unset_is_no_proxy() -> None:
    assert Proxies(https="http://proxy.test", no_proxy="*").of("https://far.test") == ""
    assert Proxies(http="http://proxy.test").of("https://far.test") == ""


def test_a_password_is_not_shown() -> None:
    assert "secret" not in repr(Proxies(http="http://me:secret@proxy.test"))
