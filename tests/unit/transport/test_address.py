"""Listen URLs are taken and refused as etcd does."""

from __future__ import annotations

import pytest

from kvstore.transport.address import parse_listen_url, parse_url


@pytest.mark.parametrize(
    ("text", "netloc"),
    [
        ("http://127.0.0.1:2379", "127.0.0.1:2379"),
        (" https://0.0.0.0:0 ", "0.0.0.0:0"),
        ("http://[::1]:2379", "[::1]:2379"),
        ("http://localhost:2379", "localhost:2379"),
        ("unix:///run/jotd.sock", "/run/jotd.sock"),
        ("unix://jotd.sock", "jotd.sock"),
    ],
)
def test_taken(text: str, netloc: str) -> None:
    url = parse_listen_url(text)
    assert url.netloc == netloc
    assert str(url) == text.strip()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("127.0.0.1:2379", "URL scheme must be http, https, unix, or unixs"),
        ("ftp://127.0.0.1:2379", "URL scheme must be http, https, unix, or unixs"),
        ("http://127.0.0.1", 'does not have the form "host:port"'),
        ("http://127.0.0.1:99999", 'does not have the form "host:port"'),
        ("http://127.0.0.1:x", 'does not have the form "host:port"'),
        ("http://127.0.0.1:2379/", "URL must not contain a path"),
        ("http://example.com:2379", "expected IP in URL for binding"),
        ("http://:2379", "expected IP in URL for binding"),
        ("unix://", "names no socket"),
        ("http://[::1:2379", "http://"),
    ],
)
def test_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_listen_url(text)


def test_an_advertised_url_may_be_a_name() -> None:
    assert parse_url("http://example.com:2379").netloc == "example.com:2379"
