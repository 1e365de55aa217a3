"""Task ids: strings of at most 255 bytes; a UUIDv7 travels as its 16 bytes."""

from qprotocol.limits import ID_BYTES_MAX


def pack_id(text: str) -> tuple[bytes, bool]:
    """The bytes of an id in a packed message, and whether they are a UUIDv7's.

    Raises ValueError if the id is empty or over 255 bytes.
    """
    if len(text) == 36 and text[14] == "7":
        try:
            raw = bytes.fromhex(text.replace("-", ""))
        except ValueError:
            raw = b""
        if len(raw) == 16 and text == unpack_id(raw, minted=True):
            return raw, True
    try:
        raw = text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the task id {text!r:.80} cannot be written as UTF-8: {error}") from error
    if not 1 <= len(raw) <= ID_BYTES_MAX:
        raise ValueError(f"a task id has 1 to {ID_BYTES_MAX} bytes, this one has {len(raw)}")
    return raw, False


def unpack_id(raw: bytes, *, minted: bool) -> str:
    """The id as people see it. Raises ValueError for bytes that are none."""
    if not minted:
        return raw.decode()
    if len(raw) != 16:
        raise ValueError(f"a minted id has 16 bytes, this one has {len(raw)}")
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def minted_ms(raw: bytes) -> int:
    """The broker time, in milliseconds, from which a UUIDv7 of 16 bytes was minted."""
    return int.from_bytes(raw[:6], "big")


def mint(now_ms: int, random_80: int) -> bytes:
    """A UUIDv7's 16 bytes from broker time and 80 random bits (RFC 9562 §5.7; 74 are used)."""
    high = (now_ms & 0xFFFF_FFFF_FFFF) << 16 | 0x7000 | (random_80 >> 64 & 0x0FFF)
    low = 0x8000_0000_0000_0000 | (random_80 & 0x3FFF_FFFF_FFFF_FFFF)
    return (high << 64 | low).to_bytes(16, "big")
