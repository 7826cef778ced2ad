"""Names cameras in messages and results without the credentials that their addresses may hold.

A password can stand anywhere in an address: before the host, in the path
(`rtsp://camera/user=admin&password=...`) or in the query. It may contain the characters that
separate these parts. Therefore only scheme, host and port are shown, and the host only where it is
certain which part of the address it is.
"""

import os
import re

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,15}")
_END_OF_HOST = re.compile(r"[/?#\\\s]")
_PORT = r"(?::[0-9]{1,5})?"
_HOST = re.compile(rf"(?:[\w.-]+|\[[0-9A-Fa-f:.]+\]){_PORT}")
_IPV4_ADDRESS = re.compile(rf"[0-9]{{1,3}}(?:\.[0-9]{{1,3}}){{3}}{_PORT}")
# A text without any of these characters names no user and no password.
_CREDENTIAL_MARKS = re.compile("[@:=&?#]")

_HIDDEN = "(not shown, as it may contain a password)"


def public_name(source: str) -> str:
    """The part of a camera's address that may be printed and stored; never fails.

    Of an address these are scheme, host and port, for example `rtsp://camera:554`. The host is
    replaced by `...` where a part of the password could be taken for it, unless it is an IPv4
    address. Paths of devices and files are returned unchanged.
    """
    scheme, separator, rest = source.partition("://")
    if not separator:
        is_path = re.match(r"\.{0,2}/(?!/)", source) or os.path.lexists(source)
        return source if is_path or not _CREDENTIAL_MARKS.search(source) else _HIDDEN
    authority = _END_OF_HOST.split(rest, maxsplit=1)[0]
    hosts = [authority.rpartition("@")[2]]
    is_host = _HOST.fullmatch
    if "@" in rest[len(authority) :]:
        # Either this '@' belongs to the path, or the password contains the end of `authority`.
        hosts.append(_END_OF_HOST.split(rest.rpartition("@")[2], maxsplit=1)[0])
        is_host = _IPV4_ADDRESS.fullmatch
    host = next(filter(is_host, hosts), "...")
    return f"{scheme if _SCHEME.fullmatch(scheme) else '...'}://{host}"


def without_addresses(text: str) -> str:
    """The text up to the first address in it; `user:password@` also begins one.

    The text after the address is removed too, because its end cannot be found: a password may
    contain spaces and quotes.
    """
    return re.sub(r"[\w+.-]*://.*|[^\s=]*:\S+@.*", "(address)", text, count=1, flags=re.DOTALL)
