"""Certificates and securities for the tests of the wire."""

from __future__ import annotations

import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import trustme

from replidict.security import TLS, Mode, Security, security_for

MODES: tuple[Mode, ...] = ("plain", "secret", "tls")
SECRET = "a secret that only this cluster knows"


class Certificates:
    """One authority, and the certificates it gave out, as files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.ca = self._write("ca.pem", self.authority.cert_pem)
        self.good = self.issue("good", "127.0.0.1", "::1", "localhost")

    def issue(self, name: str, *hosts: str, expired: bool = False, by: trustme.CA | None = None) -> TLS:
        """A certificate for these hosts."""
        when = datetime.datetime.now(datetime.UTC)
        day = datetime.timedelta(days=1)
        issued = (by or self.authority).issue_cert(
            *hosts,
            not_before=when - 3 * day if expired else None,
            not_after=when - day if expired else None,
        )
        path = self._write(f"{name}.pem", issued.private_key_and_cert_chain_pem)
        return TLS(cert=path, key=path, ca=self.ca)

    @lru_cache  # noqa: B019
    def security(self, mode: Mode, address: str = "127.0.0.1:7000") -> Security:
        """What the nodes of a test use in this mode; all names stand for loopback, so plain is fine too."""
        if mode == "tls":
            return security_for(address, self.good, None, False)
        return security_for(address, None, SECRET if mode == "secret" else None, mode == "plain")

    def _write(self, name: str, blob: trustme.Blob) -> Path:
        path = self.folder / name
        blob.write_to_path(str(path))
        return path


def given(mode: Mode, certificates: Certificates) -> dict[str, Any]:
    """What a program gives a dict in this mode."""
    everything: dict[Mode, dict[str, Any]] = {
        "plain": {},
        "secret": {"secret": SECRET},
        "tls": {"tls": certificates.good},
    }
    return everything[mode]
