"""Check the base URL and the hosts of result links.

Result links are untrusted input: a link to an address of a private network would make this process
send requests inside that network (OWASP, server-side request forgery). Links must therefore use
https and lead to public addresses, unless the API itself is on loopback, as in development.
"""

from __future__ import annotations

import unicodedata
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import SplitResult, urlsplit

from musicgpt_async.errors import ConfigurationError, DownloadError

# IPv6 that embeds IPv4 (RFC 3056, 4291, 8215), and site-local addresses (RFC 3879).
_TRANSLATED = [
    ip_network(n) for n in ("::/96", "::ffff:0:0:0/96", "64:ff9b:1::/48", "2002::/16", "fec0::/10")
]
# Public IPv4 behind a provider's NAT64 (RFC 6052): in such a network every host has this prefix.
_NAT64 = ip_network("64:ff9b::/96")
_LOOPBACK_NAMES = frozenset({"localhost", "localhost.", "ip6-localhost"})


def validate_base_url(base_url: str) -> str:
    """Return the API's base URL without a trailing slash.

    Raises:
        ConfigurationError: The URL is not http(s), or would send the key unencrypted.
    """
    url = base_url.strip().rstrip("/")
    parts = _split(url)
    if parts is None or "?" in url or "#" in url:
        raise ConfigurationError(
            f"{base_url!r} is not a base URL. Set MusicGPTSession(base_url=…) or the environment "
            "variable MUSICGPT_BASE_URL to a URL such as https://host/path."
        )
    if parts.scheme == "http" and not is_loopback(url):
        raise ConfigurationError(
            f"{base_url!r} would send the API key unencrypted; use https:// (http:// is allowed "
            "for loopback only)."
        )
    return url


def is_loopback(url: str) -> bool:
    """Return whether a URL's host is this machine."""
    parts = _split(url)
    if parts is None or parts.hostname is None:
        return False
    address = _literal(parts.hostname)
    if address is None:
        return parts.hostname.lower() in _LOOPBACK_NAMES
    return _is_plain_loopback(address)


def check_link(url: str, *, allow_loopback: bool) -> None:
    """Refuse a link that does not lead to a public https address.

    Raises:
        DownloadError: The link does not use https, or its host is not public.
    """
    parts = _split(url)
    if parts is None or parts.hostname is None:
        raise DownloadError(f"MusicGPT sent a link that is not a URL: {without_query(url)!r}.")
    if allow_loopback and is_loopback(url):
        return
    if parts.scheme != "https":
        raise DownloadError(f"The link {without_query(url)} is not https; it was not followed.")
    address = _literal(parts.hostname)
    if address is None and _could_be_address(parts.hostname):
        raise DownloadError(
            f"The host of the link {without_query(url)} is an obfuscated IP address; "
            "it was not followed."
        )
    if is_loopback(url) or (address and not is_public(address)):
        raise DownloadError(
            f"The link {without_query(url)} leads into a private network; it was not followed."
        )


def is_public(address: str | IPv4Address | IPv6Address) -> bool:
    """Return whether an address is publicly reachable; a malformed one is not."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if parsed in _NAT64:
        return is_public(IPv4Address(int(parsed) & 0xFFFFFFFF))
    inner = getattr(parsed, "ipv4_mapped", None)
    if any(parsed in network for network in _TRANSLATED if network.version == parsed.version):
        return False
    return parsed.is_global and not parsed.is_multicast and (inner is None or is_public(inner))


def is_address(host: str) -> bool:
    """Return whether a URL's host is an IP address, not a name."""
    return _literal(host) is not None


def is_loopback_address(address: str) -> bool:
    """Return whether an address is a loopback address."""
    literal = _literal(address)
    return literal is not None and _is_plain_loopback(literal)


def without_query(url: str) -> str:
    """Return a link without its query, for messages: the query may contain a signature."""
    return url.partition("?")[0].partition("#")[0][:200]


def _is_plain_loopback(address: IPv4Address | IPv6Address) -> bool:
    # Python 3.13 counts mapped addresses as loopback, earlier versions do not.
    return address.is_loopback and getattr(address, "ipv4_mapped", None) is None


def _could_be_address(host: str) -> bool:
    """Return whether a resolver may parse a name as an address: "127.1", "0x7f000001"."""
    plain = unicodedata.normalize("NFKC", host).replace("。", ".").rstrip(".")
    last = plain.rpartition(".")[2]
    return last.isdigit() or last.startswith("0x")


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        return None
    return parts if usable else None


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        return None
