"""Files of certificates: what is wrong with them is told before a server starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.certificates import Authority, Pair

from pahq_server.access.tls import TlsFiles, read
from pahq_server.core.errors import InvalidRequestError


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def server(authority: Authority) -> Pair:
    return authority.sign("server")


def test_what_goes_together(authority: Authority, server: Pair) -> None:
    contents = read(TlsFiles(server.cert, server.key, authority.cert))
    assert (contents.cert, contents.key) == (server.cert_pem, server.key_pem)
    assert contents.client_ca == authority.cert.read_bytes()
    assert read(TlsFiles(server.cert, server.key)).client_ca is None


def test_a_key_of_another_certificate(authority: Authority, server: Pair) -> None:
    other = authority.sign("other")
    with pytest.raises(InvalidRequestError, match=f"{other.key} is not the key of {server.cert}"):
        read(TlsFiles(server.cert, other.key))


@pytest.mark.parametrize("option", ["tls-cert", "tls-key", "tls-client-ca"])
def test_a_file_that_is_not_there(option: str, authority: Authority, server: Pair, tmp_path: Path) -> None:
    paths = {"tls-cert": server.cert, "tls-key": server.key, "tls-client-ca": authority.cert}
    paths[option] = tmp_path / "nothing.pem"
    with pytest.raises(InvalidRequestError, match=r"cannot read .*nothing\.pem: No such file") as caught:
        read(TlsFiles(*paths.values()))
    assert caught.value.field == option


@pytest.mark.parametrize("content", [b"", b"not PEM", b"\0\xff", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
@pytest.mark.parametrize("option", ["tls-cert", "tls-key", "tls-client-ca"])
def test_a_file_with_something_else(
    option: str, content: bytes, authority: Authority, server: Pair, tmp_path: Path
) -> None:
    paths = {"tls-cert": server.cert, "tls-key": server.key, "tls-client-ca": authority.cert}
    paths[option] = tmp_path / "odd.pem"
    paths[option].write_bytes(content)
    with pytest.raises(InvalidRequestError, match=r"odd\.pem") as caught:
        read(TlsFiles(*paths.values()))
    assert option in caught.value.field


def test_a_key_with_a_password_is_refused_without_asking_for_it(authority: Authority) -> None:
    locked = authority.sign("locked", password=b"secret")
    with pytest.raises(InvalidRequestError, match="unencrypted key"):
        read(TlsFiles(locked.cert, locked.key))


def test_a_certificate_of_a_server_is_no_authority(server: Pair) -> None:
    with pytest.raises(InvalidRequestError, match="no certificate of an authority"):
        read(TlsFiles(server.cert, server.key, server.cert))
