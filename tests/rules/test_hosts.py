from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from musicgpt_async._rules.hosts import (
    check_link,
    is_loopback,
    is_loopback_address,
    is_public,
    validate_base_url,
    without_query,
)
from musicgpt_async.errors import ConfigurationError, DownloadError

PUBLIC = ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8"]
LOOPBACK = ["127.0.0.1", "127.255.255.254", "::1"]
PRIVATE = [
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "0.0.0.0",
    "0.1.2.3",
    "255.255.255.255",
    "240.0.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "::",
    "fe80::1",
    "fc00::1",
    "fd12:3456::1",
    "ff02::1",
    "2001:db8::1",
    "2001::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:224.0.0.1",
    "2002:808:808::1",
    "2002:7f00:1::",
    "2002:a00:1::",
    "2002:c0a8:101::",
]
# Python calls these global, and each can lead to a private IPv4 address or a site's own network.
EMBEDDED = [
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "64:ff9b:1::a00:1",
    "::127.0.0.1",
    "::10.0.0.1",
    "::ffff:0:10.0.0.1",
    "fec0::1",
]


def host_of(address: str) -> str:
    """Return an address as the host of a URL."""
    return f"[{address}]" if ":" in address else address


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_public(address: str) -> None:
    """IPv4, IPv6 and both ways to write one in the other."""
    assert is_public(address)
    check_link(f"https://{host_of(address)}/a.wav", allow_loopback=False)


@pytest.mark.parametrize("address", PRIVATE + LOOPBACK)
def test_no_other_address_is_public(address: str) -> None:
    """Private, shared, link-local, reserved, multicast, and IPv4 wrapped in IPv6."""
    assert not is_public(address)
    for scheme in ("http", "https"):
        with pytest.raises(DownloadError):
            check_link(f"{scheme}://{host_of(address)}/a.wav", allow_loopback=False)


@pytest.mark.parametrize("address", EMBEDDED)
def test_ipv4_inside_ipv6_is_judged_by_what_it_leads_to(address: str) -> None:
    """Embedded IPv4 addresses cannot bypass the rule."""
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["", "x", "1.2.3", "1.2.3.4.5", "::g", "8.8.8.8/32", "8.8.8.8 "]
)
def test_a_garbled_address_is_not_public(address: str) -> None:
    """What cannot be read cannot be trusted."""
    assert not is_public(address)
    assert not is_loopback_address(address)


@given(st.ip_addresses())
def test_every_address_is_judged(address: IPv4Address | IPv6Address) -> None:
    """Text and object are judged alike; loopback and private are never public."""
    assert is_public(address) == is_public(str(address))
    if address.is_private or address.is_loopback or address.is_multicast or address.is_link_local:
        assert not is_public(address)


@pytest.mark.parametrize(
    "link",
    [
        "http://127.0.0.1:8000/a.wav",
        "https://127.0.0.1/a.wav",
        "http://127.9.9.9/a.wav",
        "http://localhost:1/a.wav",
        "http://LOCALHOST/a.wav",
        "http://localhost./a.wav",
        "http://[::1]:80/a.wav",
    ],
)
def test_loopback_is_allowed_only_in_development(link: str) -> None:
    """With the API on this machine its links may lead here, by plain http too."""
    assert is_loopback(link)
    check_link(link, allow_loopback=True)
    with pytest.raises(DownloadError):
        check_link(link, allow_loopback=False)


@pytest.mark.parametrize("text", ["", "a.wav", "http://", "http://[", "https:///127.0.0.1"])
def test_what_has_no_host_is_not_this_machine(text: str) -> None:
    """A base URL or a link without a host opens nothing."""
    assert not is_loopback(text)


@pytest.mark.parametrize("address", PRIVATE)
def test_development_opens_loopback_and_nothing_else(address: str) -> None:
    """An emulator on this machine does not open the network around it."""
    with pytest.raises(DownloadError):
        check_link(f"https://{host_of(address)}/a.wav", allow_loopback=True)


@pytest.mark.parametrize("allow_loopback", [True, False])
@pytest.mark.parametrize(
    "link",
    [
        "",
        "a.wav",
        "/a.wav",
        "//files.example/a.wav",
        "http://files.example/a.wav",
        "ftp://files.example/a.wav",
        "file:///etc/passwd",
        "data:audio/wav;base64,AAAA",
        "javascript:alert(1)",
        "https://",
        "https:///a.wav",
        "https://:443/a.wav",
        "https://[::1/a.wav",
        "https://[not-an-address]/a.wav",
        "https://files.example:99999/a.wav",
        "https://files.example:port/a.wav",
        "https://user@10.0.0.1/a.wav",
        "https://files.example@10.0.0.1/a.wav",
        "https://files.example\\@10.0.0.1/a.wav",
        "https://10.0.0.1#@files.example/a.wav",
        "https://[fe80::1%25eth0]/a.wav",
    ],
)
def test_every_other_link_is_refused(link: str, allow_loopback: bool) -> None:
    """Other schemes, no host, plain http to the world, and hosts hidden behind user names."""
    with pytest.raises(DownloadError):
        check_link(link, allow_loopback=allow_loopback)


@pytest.mark.parametrize(
    "link",
    [
        "https://lalals.s3.amazonaws.com/a.wav?X-Amz-Signature=1",
        "HTTPS://Files.Example/a.wav",
        "https://files.example:8443/a.wav",
        "https://user@files.example/a.wav",
        "https://dateien.bücher.example/a.wav",
    ],
)
def test_public_links_pass(link: str) -> None:
    """Names pass; their addresses are checked after DNS resolution."""
    check_link(link, allow_loopback=False)


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "127.1",
        "10.1",
        "0177.0.0.1",
        "017700000001",
        "127.0.0.01",
        "①②⑦.0.0.1",
        "\uff11\uff12\uff17.0.0.1",
        "127。0。0。1",
        "0x7f000001",
        "0x7f.1",
    ],
)
def test_odd_spellings_of_an_address_are_refused(host: str) -> None:
    """What the system would read as an address is judged as one, or refused."""
    with pytest.raises(DownloadError):
        check_link(f"https://{host}/a.wav", allow_loopback=False)


@given(
    st.sampled_from(["https://", "HTTPS://", "https:/", "//", " https://", "\x01https://"]),
    st.text(alphabet="a1.:@/\\?#[]% \t\n%40②é-", max_size=20),
)
def test_the_host_that_is_judged_is_the_host_that_is_asked(scheme: str, rest: str) -> None:
    """Two readers of URLs that disagree would judge one host and connect to another."""
    link = f"{scheme}10.0.0.1{rest}"
    try:
        check_link(link, allow_loopback=False)
        asked = URL(link, encoded=True).host
    except (DownloadError, ValueError):
        return
    assert asked != "10.0.0.1"


def test_a_refusal_shows_no_signature() -> None:
    """A link's query may be as good as a key."""
    link = "https://10.0.0.1/a.wav?X-Amz-Signature=s3cret#frag"
    with pytest.raises(DownloadError) as caught:
        check_link(link, allow_loopback=False)
    assert "https://10.0.0.1/a.wav" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert without_query(link) == "https://10.0.0.1/a.wav"
    assert len(without_query("https://a/" + "x" * 5000)) == 200


def test_a_refusal_of_what_is_no_url_shows_no_signature() -> None:
    """Nor does one that cannot be read as a URL."""
    with pytest.raises(DownloadError) as caught:
        check_link("https://files.example:port/a.wav?X-Amz-Signature=s3cret", allow_loopback=False)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("https://api.musicgpt.com/api/public/v1", "https://api.musicgpt.com/api/public/v1"),
        (" https://api.example/v1// ", "https://api.example/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000"),
        ("http://localhost:8000", "http://localhost:8000"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("https://10.0.0.1/v1", "https://10.0.0.1/v1"),
    ],
)
def test_a_base_url_loses_its_trailing_slash(given_: str, expected: str) -> None:
    """Https anywhere, http on this machine alone."""
    assert validate_base_url(given_) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "api.musicgpt.com",
        "ftp://api.example",
        "http://api.musicgpt.com/api/public/v1",
        "http://10.0.0.1",
        "http://0.0.0.0:8000",
        "http://127.0.0.1.example",
        "http://localhost.example",
        "https://",
        "https://a:port",
        "https://a/?x=1",
        "https://a/#x",
    ],
)
def test_a_base_url_that_would_lose_the_key_or_lead_nowhere_is_refused(url: str) -> None:
    """The error names the variable of the URL, or says that the key would be unencrypted."""
    with pytest.raises(ConfigurationError, match=r"MUSICGPT_BASE_URL|API key unencrypted"):
        validate_base_url(url)


@pytest.mark.parametrize("url", ["https://api.example/v1?", "https://api.example/v1#"])
def test_a_base_url_ends_in_its_path(url: str) -> None:
    """Paths are appended to it, so a query or fragment is refused."""
    with pytest.raises(ConfigurationError):
        validate_base_url(url)
