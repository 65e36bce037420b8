"""Server-sent events, as a browser reads them: fields, events with data, and the last id."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Iterator
from typing import Any


class Stream:
    """The events in the lines of one answer."""

    def __init__(self, lines: Iterable[str], last_id: str | None = None) -> None:
        self._lines = iter(lines)
        self.last_id = last_id

    def event(self) -> tuple[str, Any] | None:
        """The next event, by name and data; None at the end of the stream."""
        name, data = "message", ""
        for line in self._lines:
            if line == "":
                if data:
                    return name, json.loads(data)
                name = "message"
            elif not line.startswith(":"):
                field, _, value = line.partition(": ")
                if field == "id":
                    self.last_id = value
                elif field == "event":
                    name = value
                else:
                    assert field == "data"
                    data += value
        return None


class EventSource(Stream):
    """A connection of a browser to a stream."""

    def __init__(
        self,
        port: int,
        query: str = "",
        last_id: str | None = None,
        *,
        path: str = "/watch",
        host: str = "127.0.0.1",
        timeout: float = 60,
    ) -> None:
        self.socket = socket.create_connection((host, port), timeout)
        self._file = self.socket.makefile("rb")
        header = "" if last_id is None else f"Last-Event-ID: {last_id}\r\n"
        self.socket.sendall(f"GET {path}{query} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n".encode())
        status, *headers = [line.decode().rstrip() for line in iter(self._file.readline, b"\r\n")]
        self.status = int(status.split()[1])
        self.headers = dict(line.lower().split(": ", 1) for line in headers)
        super().__init__(self._read() if self.status == 200 else (), last_id)

    def __enter__(self) -> EventSource:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        self.socket.close()

    def _read(self) -> Iterator[str]:
        rest = b""
        while (size := int(self._file.readline().strip() or b"0", 16)) > 0:
            rest += self._file.read(size)
            self._file.readline()
            *lines, rest = rest.split(b"\n")
            yield from (line.decode() for line in lines)
