"""Who may listen where, and what a certificate or a secret must be."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from replidict.errors import ReplidictError, SecurityError
from replidict.security import KEYS_MAX, TLS, certificate_is_for, is_loopback, security_for, split_address

LOOPBACK = ["127.0.0.1:7000", "127.8.9.10:7000", "[::1]:7000", "localhost:7000", "LOCALHOST:7000"]
ELSEWHERE = ["10.0.0.1:7000", "[fe80::1]:7000", "db1:7000", "localhost.example:7000", "127.0.0.1.example:7000",
             "[::ffff:10.0.0.1]:7000", "128.0.0.1:7000", "127.1:7000"]  # fmt: skip
SECRET = "correct horse battery staple"


@pytest.fixture(scope="session")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pem")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    for name in ("one", "two"):
        issued = authority.issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        issued.cert_chain_pems[0].write_to_path(str(folder / f"{name}.crt"))
    (folder / "garbage").write_text("-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n")
    return folder


def tls(pem: Path, **changed: str | Path) -> TLS:
    paths = {"cert": pem / "one.crt", "key": pem / "one.key", "ca": pem / "ca.pem"} | changed
    return TLS(cert=paths["cert"], key=paths["key"], ca=paths["ca"])


@pytest.mark.parametrize("address", LOOPBACK)
def test_plain_on_loopback_needs_nothing_and_stays_there(address: str) -> None:
    """On loopback a node listens without credentials, and is bound to loopback in both directions."""
    security = security_for(address, None, None, False)
    assert (security.mode, security.loopback_only) == ("plain", True)


@pytest.mark.parametrize("address", ELSEWHERE)
def test_off_loopback_refuses_without_credentials(address: str) -> None:
    """Off loopback, and wherever that is not sure, a node without credentials refuses to listen and says what to do."""
    with pytest.raises(SecurityError, match=r"secret=.*tls=.*insecure=True"):
        security_for(address, None, None, False)


@pytest.mark.parametrize("address", ELSEWHERE)
def test_off_loopback_with_credentials_or_insecure(address: str, pem: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a secret or TLS a node listens anywhere; with `insecure=True` too, with a warning."""
    assert security_for(address, None, SECRET, False).mode == "secret"
    assert security_for(address, tls(pem), None, False).mode == "tls"
    assert not caplog.records
    security = security_for(address, None, None, True)
    assert (security.mode, security.loopback_only) == ("plain", False)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert address in caplog.text


def test_one_kind_of_credentials() -> None:
    """TLS and a secret together are refused, since a node could not say which one protects it."""
    with pytest.raises(ValueError, match="give one of them"):
        security_for("127.0.0.1:7000", TLS(cert="a", key="b", ca="c"), SECRET, False)


@pytest.mark.parametrize("secret", ["", b"", "1234567", b"1234567", 12345678, bytearray(b"12345678")])
def test_weak_secrets_are_refused(secret: object) -> None:
    """A secret that is empty, short, or neither str nor bytes is refused, and never repeated in the message."""
    with pytest.raises(ValueError, match="at least 8 bytes") as caught:
        security_for("127.0.0.1:7000", None, secret, False)  # type: ignore[arg-type]
    assert "1234567" not in str(caught.value)


def test_str_and_bytes_secrets_are_one() -> None:
    """The same secret as str and as bytes gives the same key; another secret or cluster gives another."""
    key = security_for("127.0.0.1:7000", None, SECRET, False).stretch("c")
    assert len(key) == 32
    assert key == security_for("10.0.0.1:7000", None, SECRET.encode(), False).stretch("c")
    assert key != security_for("127.0.0.1:7000", None, SECRET, False).stretch("d")
    assert key != security_for("127.0.0.1:7000", None, SECRET + ".", False).stretch("c")
    assert security_for("127.0.0.1:7000", None, None, False).stretch("c") == b""


def test_keys_are_kept_for_few_clusters() -> None:
    """What was made of a secret for the first clusters is not made again, and strangers' clusters cost no memory."""
    security = security_for("127.0.0.1:7000", None, SECRET, False)
    first = security.stretch("own")
    assert security.stretch("own") is first
    for number in range(KEYS_MAX + 3):
        assert security.stretch(f"stranger {number}") not in (first, b"")
    assert len(security._keys) == KEYS_MAX and security.stretch("own") is first


def test_secrets_stay_out_of_reprs() -> None:
    """No repr shows the secret."""
    security = security_for("127.0.0.1:7000", None, SECRET, False)
    assert "horse" not in repr(security) + str(security) + f"{security}"


@pytest.mark.parametrize("which", ["cert", "key", "ca"])
@pytest.mark.parametrize("how", ["missing", "garbage", "folder"])
def test_bad_files_are_named(which: str, how: str, pem: Path) -> None:
    """A certificate file that is missing, no file or no PEM is refused by name when the node is made."""
    path = pem if how == "folder" else pem / how
    with pytest.raises(SecurityError, match=rf"{which}=.*{path.name}"):
        security_for("127.0.0.1:7000", tls(pem, **{which: path}), None, False)


def test_key_of_another_certificate(pem: Path) -> None:
    """A key that does not belong to the certificate is refused, and both files are named."""
    with pytest.raises(SecurityError, match=r"one\.crt.*two\.key.*belongs"):
        security_for("127.0.0.1:7000", tls(pem, key=pem / "two.key"), None, False)


def test_encrypted_key_is_refused_without_asking(pem: Path, tmp_path: Path) -> None:
    """An encrypted key is refused; OpenSSL does not stop the program to ask for a password."""
    from cryptography.hazmat.primitives import serialization as ser

    key = ser.load_pem_private_key((pem / "one.key").read_bytes(), None)
    encrypted = key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.BestAvailableEncryption(b"password"))
    (tmp_path / "locked.key").write_bytes(encrypted)
    program = (
        "import sys; from replidict.security import TLS, security_for\n"
        "security_for('127.0.0.1:7000', TLS(cert=sys.argv[1], key=sys.argv[2], ca=sys.argv[3]), None, False)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, pem / "one.crt", tmp_path / "locked.key", pem / "ca.pem"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, start_new_session=True,
        env={**os.environ, "PYTHONWARNINGS": ""},
    )  # fmt: skip
    assert "SecurityError" in done.stderr and "locked.key" in done.stderr and "pass phrase" not in done.stderr


def test_names_are_several() -> None:
    """A single str for `names` would be taken for its letters, so it is refused."""
    with pytest.raises(ValueError, match="names"):
        TLS(cert="a", key="b", ca="c", names="replidict")  # type: ignore[arg-type]
    assert TLS(cert="a", key="b", ca="c", names=["x"]).names == ("x",)


@pytest.mark.parametrize(
    ("held", "host", "names", "good"),
    [
        ([("IP Address", "10.0.0.1")], "10.0.0.1", (), True),
        ([("IP Address", "10.0.0.1")], "10.0.0.2", (), False),
        ([("IP Address", "0:0:0:0:0:0:0:1")], "::1", (), True),
        ([("DNS", "10.0.0.1")], "10.0.0.1", (), False),
        ([("DNS", "db1.example.com")], "DB1.Example.com", (), True),
        ([("DNS", "db1.example.com")], "db2.example.com", (), False),
        ([("DNS", "*.example.com")], "db1.example.com", (), True),
        ([("DNS", "*.example.com")], "a.db1.example.com", (), False),
        ([("DNS", "*.example.com")], "example.com", (), False),
        ([("DNS", "*.com")], "example.com", (), False),
        ([("DNS", "*")], "db1", (), False),
        ([("DNS", "*")], "db1.example.com", (), False),
        ([("DNS", "replidict")], "10.0.0.1", ("replidict",), True),
        ([("DNS", "other")], "10.0.0.1", ("replidict",), False),
        ([("IP Address", "10.9.9.9")], "10.0.0.1", ("10.9.9.9",), True),
        ([("URI", "db1"), ("email", "db1")], "db1", (), False),
        ([], "db1", ("db1",), False),
    ],
)
def test_certificate_names(held: list[tuple[str, str]], host: str, names: tuple[str, ...], good: bool) -> None:
    """A certificate is for a node only if a subject alternative name is its host or one of the listed names."""
    assert certificate_is_for({"subjectAltName": held}, host, names) is good
    assert not certificate_is_for({"subject": ((("commonName", host),),)}, host, names)


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("10.0.0.1:7000", ("10.0.0.1", 7000)),
        ("[::1]:65535", ("::1", 65535)),
        ("db1.example:1", ("db1.example", 1)),
    ],
)
def test_addresses(address: str, parts: tuple[str, int]) -> None:
    """An address is a host and a port, and IPv6 stands in brackets."""
    assert split_address(address) == parts


@pytest.mark.parametrize(
    "address",
    ["", ":", "host", "host:", ":7000", "host:0", "host:65536", "host:x", "host:-1", "host: 7", "::1:7000", "[]:7000",
     "ho st:7000", "host:0000070001", "host:\u0667", "0.0.0.0:7000", "[::]:7000", "0:7000", "0x0:7000",
     "\uff10:7000", "a\nb:7000", "http://host:7000"],
)  # fmt: skip
def test_bad_addresses(address: str) -> None:
    """What peers could not call is no address, and the error shows what one looks like."""
    with pytest.raises(ReplidictError, match=r"10\.0\.0\.1:7000"):
        split_address(address)


def test_loopback_is_only_what_surely_is() -> None:
    """Names other than localhost, and addresses that merely look like loopback, are not loopback."""
    assert all(is_loopback(split_address(address)[0]) for address in LOOPBACK)
    assert not any(is_loopback(split_address(address)[0]) for address in ELSEWHERE)
