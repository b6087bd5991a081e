"""Which addresses a webhook may be sent to, and sending to exactly the address that was checked.

A client's URL makes this process open a connection. It must not reach what only this process can reach:
loopback, private networks, cloud metadata. A name is resolved once, every address it has is checked, and
the connection goes to the checked address; redirects are not followed.
"""

import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from app.domain.errors import UnsafeWebhookError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PORTS = frozenset({443, 8443})
CARRIERS = tuple(ipaddress.ip_network(text) for text in ("64:ff9b::/96", "::ffff:0:0:0/96", "fec0::/10", "64:ff9b:1::/48", "2002::/16", "2001::/32"))  # fmt: skip
"""IPv6 addresses that stand for IPv4 ones (NAT64, SIIT, 6to4, Teredo), or once were private."""
TOTAL_SECONDS = 15.0
MAX_ANSWER_BYTES = 64 << 10
MAX_URL_CHARACTERS = 2048
HTTPS_ONLY = "it must be https://…; only networks of SPQ_WEBHOOK_NETWORKS may be called without"


@dataclass(frozen=True, slots=True)
class Target:
    """A URL in parts."""

    scheme: str
    host: str
    port: int
    path: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What an endpoint said."""

    status: int
    retry_after: str


def parse_target(url: str, trusted: Sequence[Network]) -> Target:
    """Check what can be checked without a resolver.

    Args:
        trusted: networks of the operator's own that may be reached, by http and on any port, too.

    Raises:
        UnsafeWebhookError: the URL is not https on port 443 or 8443, or carries credentials, or names an
            address that is not public.
    """
    if len(url) > MAX_URL_CHARACTERS or not url.isascii() or any(c <= " " for c in url):
        raise UnsafeWebhookError("it is too long, or holds spaces or characters outside ASCII")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UnsafeWebhookError("it is malformed") from None
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise UnsafeWebhookError(HTTPS_ONLY)
    if parts.username is not None or parts.password is not None:
        raise UnsafeWebhookError("it must not carry a user name or password")
    if port is None:
        port = 443 if parts.scheme == "https" else 80
    target = Target(parts.scheme, parts.hostname, port, _path(parts.path, parts.query))
    if not trusted:
        _require_public_form(target)
    literal = _literal(target.host)
    if literal is not None and not is_allowed(literal, target, trusted):
        raise UnsafeWebhookError(f"{target.host} is not a public address")
    return target


def is_allowed(address: Address, target: Target, trusted: Sequence[Network]) -> bool:
    """Whether a resolved address may be connected to for this target."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if any(address in network for network in trusted if network.version == address.version):
        return True
    if target.scheme != "https" or target.port not in PORTS:
        return False
    carried = any(address in network for network in CARRIERS if network.version == address.version)
    return address.is_global and not address.is_multicast and not carried


def send(
    target: Target, body: bytes, headers: Mapping[str, str], trusted: Sequence[Network]
) -> Answer:
    """POST once, to an address that was checked, within `TOTAL_SECONDS`.

    Raises:
        UnsafeWebhookError: the name has an address that is not allowed.
        OSError, http.client.HTTPException: the endpoint cannot be reached or does not speak HTTP.
    """
    address = _resolved(target, trusted)
    connection = _Pinned(target, address)
    alarm = threading.Timer(TOTAL_SECONDS, connection.abort)
    alarm.daemon = True
    alarm.start()
    try:
        connection.request("POST", target.path, body=body, headers=dict(headers))
        answer = connection.getresponse()
        answer.read(MAX_ANSWER_BYTES)
        return Answer(answer.status, answer.headers.get("Retry-After", ""))
    finally:
        alarm.cancel()
        connection.close()


class _Pinned(http.client.HTTPConnection):
    """A connection to one address, in the name of the URL's host."""

    def __init__(self, target: Target, address: Address) -> None:
        super().__init__(target.host, target.port, timeout=TOTAL_SECONDS)
        self._target, self._address = target, address
        self._aborted = False

    def connect(self) -> None:
        """Open the socket; certificates are checked against the host's name."""
        plain = socket.create_connection((str(self._address), self._target.port), self.timeout)
        self.sock = plain
        if self._target.scheme == "https":
            context = ssl.create_default_context()
            # The handshake comes last, so that `abort` finds the socket that waits in it.
            self.sock = context.wrap_socket(
                plain, server_hostname=self._target.host, do_handshake_on_connect=False
            )
            self._require_time()
            self.sock.do_handshake()
        self._require_time()

    def abort(self) -> None:
        """Wake whoever waits on the socket: time is up."""
        self._aborted = True
        if self.sock is not None:
            try:
                self.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # it is closed already

    def _require_time(self) -> None:
        if self._aborted:
            raise TimeoutError("the endpoint took too long")


def _require_public_form(target: Target) -> None:
    if target.scheme != "https":
        raise UnsafeWebhookError(HTTPS_ONLY)
    if target.port not in PORTS:
        raise UnsafeWebhookError("its port must be 443 or 8443")


def _resolved(target: Target, trusted: Sequence[Network]) -> Address:
    found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if not addresses or not all(is_allowed(address, target, trusted) for address in addresses):
        raise UnsafeWebhookError(f"{target.host} has an address that is not public")
    return addresses[0]


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _path(path: str, query: str) -> str:
    return (path or "/") + (f"?{query}" if query else "")
