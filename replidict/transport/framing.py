"""The layers below a session: frames, tags, and TLS in memory. Bytes in, bytes out.

Rules this module keeps:

1. A frame is a 4-byte big-endian length and a body; the length is checked before anything is kept for it.
2. However a stream is chunked, the same bodies come out of it, and cutting them out is linear in its length.
3. What is wrong with received bytes raises `WireError`, and nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
import ssl

from replidict.security import certificate_is_for

TAG_BYTES = 16

_RECORD = 16 * 1024  # the most that one TLS record holds


class WireError(Exception):
    """The connection must be closed. `code` is a short word, `text` says what to do, `by_peer` whether the peer said
    so."""

    def __init__(self, code: str, text: str, by_peer: bool = False) -> None:
        super().__init__(text)
        self.code, self.text, self.by_peer = code, text, by_peer


class FrameReader:
    """Splits a byte stream into frame bodies. A length above `max_bytes` is refused before anything is stored."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._buffer = bytearray()
        self._start = 0  # what lies before was cut off already

    @property
    def held(self) -> int:
        """How many bytes are kept, of a frame that is not whole yet."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes that arrived."""
        self._buffer += data

    def next(self) -> bytearray | None:
        """The next whole body, or None."""
        start, buffer = self._start + 4, self._buffer
        if len(buffer) >= start:
            length = int.from_bytes(buffer[start - 4 : start], "big")
            if length > self.max_bytes or not length:
                raise WireError("protocol", f"a frame claims {length} bytes, and at most {self.max_bytes} are allowed")
            if len(buffer) >= start + length:
                self._start = start + length
                return buffer[start : start + length]
        # Once per chunk, not per frame; deleting from the front moves no bytes.
        del buffer[: self._start]
        self._start = 0
        return None

    def forget(self) -> None:
        """Keep nothing."""
        self._buffer, self._start = bytearray(), 0


def frame(body: bytes, tag_bytes: int = 0) -> bytes:
    """A body with its length in front; `tag_bytes` leaves room for the tag that `WireSession.seal` adds."""
    return (len(body) + tag_bytes).to_bytes(4, "big") + body


def hkdf(key: bytes, salt: bytes, info: bytes, length: int = 32) -> bytes:
    """RFC 5869 with SHA-256: extract, then expand."""
    prk = hmac.digest(salt or bytes(32), key, "sha256")
    out, block = b"", b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.digest(prk, block + info + bytes([counter]), "sha256")
        out += block
    return out[:length]


class Seal:
    """The tags of one direction of a session: BLAKE2b over a 64-bit counter and the body."""

    def __init__(self, key: bytes) -> None:
        self._keyed = hashlib.blake2b(key=key, digest_size=TAG_BYTES)
        self._count = 0

    def tag(self, body: bytes | bytearray | memoryview) -> bytes:
        """The tag of the next body."""
        mac = self._keyed.copy()
        mac.update(self._count.to_bytes(8, "big"))
        mac.update(body)
        self._count += 1
        return mac.digest()


class TlsPipe:
    """One end of a TLS 1.3 connection in memory: network bytes on one side, plain bytes on the other."""

    def __init__(self, context: ssl.SSLContext, server: bool) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._in, self._out, server_side=server)
        self.up = False

    def decrypt(self, data: bytes | memoryview) -> bytes:
        """Return the plain bytes in `data`; none while TLS is being set up."""
        self._in.write(data)
        parts = []
        try:
            if not self.up:
                self._ssl.do_handshake()
                self.up = True
            while part := self._ssl.read(_RECORD):
                parts.append(part)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLCertVerificationError as error:
            why = f"the peer's certificate is refused: {error.verify_message}: check its cert=, and ca= on both sides"
            raise WireError("certificate", why) from error
        except ssl.SSLError as error:
            raise WireError("tls", f"TLS failed: {error.reason or error}: check cert=, key= and ca=") from error
        return b"".join(parts)

    def encrypt(self, data: bytes | memoryview) -> bytes:
        """Return the bytes to send for `data`, and those that TLS itself has to send."""
        if data:
            view = memoryview(data)
            while view:
                view = view[self._ssl.write(view) :]
        return self._out.read()

    def peer_is(self, host: str, names: tuple[str, ...]) -> bool:
        """Does the other side's (verified) certificate carry `host` or one of `names`?"""
        try:
            return certificate_is_for(self._ssl.getpeercert() or {}, host, names)
        except ValueError as error:  # of names that are no text
            raise WireError("name", f"the peer's certificate can't be read: {error}") from error
