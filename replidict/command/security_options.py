"""The options with which a command authenticates itself to nodes: a secret, or certificates.

A secret is never the value of an option, because all users of the machine can see command lines: it comes from a file
or from the environment.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from replidict.command.exit_status import Failure
from replidict.security import TLS

_FILE = click.Path(path_type=Path)


@dataclass(frozen=True)
class Protection:
    """The arguments of `ReplicatedDict` and `security_for` of the same names."""

    tls: TLS | None
    secret: str | bytes | None
    insecure: bool


def protected(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options; it gets what they say as `protection`."""

    @click.option("--secret-file", type=_FILE, envvar="REPLIDICT_SECRET_FILE", help="Holds the secret of all nodes.")
    @click.option("--cert", type=_FILE, envvar="REPLIDICT_CERT", help="Certificate to show, for TLS.")
    @click.option("--cert-key", type=_FILE, envvar="REPLIDICT_CERT_KEY", help="Its private key.")
    @click.option("--ca", type=_FILE, envvar="REPLIDICT_CA", help="What all certificates come from.")
    @click.option("--insecure", is_flag=True, help="Go without, off this machine too.")
    @functools.wraps(command)
    def wrapped(
        secret_file: Path | None, cert: Path | None, cert_key: Path | None, ca: Path | None, insecure: bool, **rest: Any
    ) -> None:
        command(protection=Protection(_tls(cert, cert_key, ca), _secret(secret_file), insecure), **rest)

    return wrapped


def _secret(file: Path | None) -> str | bytes | None:
    """The secret in a file, or in the environment: bytes that are no text in UTF-8 are one as well."""
    if file is None:
        value = os.environ.get("REPLIDICT_SECRET")
        return None if value is None else os.fsencode(value)
    try:
        given = file.read_bytes()
    except OSError as error:
        raise Failure(f"--secret-file: can't read the secret: {error}", 7) from error
    try:  # whatever the locale says; line ends as in every text
        return io.TextIOWrapper(io.BytesIO(given), encoding="utf-8").read().strip()
    except UnicodeDecodeError:
        return given.strip()


def _tls(cert: Path | None, key: Path | None, ca: Path | None) -> TLS | None:
    if cert is None and key is None and ca is None:
        return None
    if cert is None or key is None or ca is None:
        raise click.UsageError("--cert, --cert-key and --ca go together")
    return TLS(cert=str(cert), key=str(key), ca=str(ca))
