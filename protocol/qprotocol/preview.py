"""The preview of a call's arguments: a text for people, in the headers of its message.

    headers   | a msgpack map of up to 15 | "preview" | the text | what else the client says |

Rule 1. It is the first entry of the map, so that it is found by looking at its place: nobody
        but the client decodes headers.
Rule 2. The client decides what it shows, and whether there is one. The archive may keep the
        beginning of it.
"""

ENTRY = "preview"
"""Its key."""
_KEY = b"\xa7preview"
_MARK = 1 + len(_KEY)
"""Where the text begins, with the byte that says how long it is."""
_SHORT = range(0xA0, 0xC0)
"""Marks of texts up to 31 bytes: the length is in the mark itself."""
_LONGER = {0xD9: 1, 0xDA: 2}
"""Marks of longer ones, and in how many bytes their length follows."""


def preview_of(headers: bytes, bytes_max: int) -> str:
    """The preview in a message's headers, cut to so many bytes; empty without one.

    Never fails: what is no preview is none, and bytes that are no UTF-8 are left out.
    """
    if headers[1:_MARK] != _KEY or len(headers) == _MARK:
        return ""
    mark, start = headers[_MARK], _MARK + 1
    if mark in _SHORT:
        size = mark & 0x1F
    elif mark in _LONGER:
        width = _LONGER[mark]
        size = int.from_bytes(headers[start : start + width])
        start += width
    else:
        return ""
    return headers[start : start + min(size, bytes_max)].decode("utf-8", "ignore")
