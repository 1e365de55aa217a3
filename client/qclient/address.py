"""Where a broker listens, as people write it: ``qbroker://host[:port]``."""

from typing import NamedTuple, Self

SCHEME = "qbroker://"
PORT = 7717


class Address(NamedTuple):
    """Where a broker listens."""

    host: str
    port: int = PORT

    @classmethod
    def parse(cls, url: str) -> Self:
        """The address in ``qbroker://host[:port]``. Raises ValueError saying what is wrong."""
        if not url.startswith(SCHEME):
            raise ValueError(
                f"the broker's address is {url!r}: it is written {SCHEME}host[:port], "
                f"for example {SCHEME}localhost:{PORT}"
            )
        rest = url[len(SCHEME) :].rstrip("/")
        if any(c in rest for c in "/?#@"):
            raise ValueError(
                f"the broker's address {url!r} has more than a host and a port: "
                f"paths, options and users are not part of it"
            )
        if rest.startswith("["):
            host, bracket, tail = rest[1:].partition("]")
            valid = bool(bracket) and tail[:1] in ("", ":")
            port = tail[1:]
        else:
            host, colon, port = rest.partition(":")
            valid = bool(port) or not colon
        if not valid or not host or any(c.isspace() for c in host):
            raise ValueError(f"the broker's address {url!r} has no host: write {SCHEME}localhost")
        if not port:
            return cls(host)
        if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
            raise ValueError(
                f"the broker's address {url!r} has the port {port!r}: a number from 1 to 65535"
                + (" (IPv6 addresses are written in [brackets])" if ":" in port else "")
            )
        return cls(host, int(port))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{SCHEME}{host}:{self.port}"
