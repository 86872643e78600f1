"""Files of certificates: what is wrong with them is told before a server starts."""

from __future__ import annotations

import datetime
import logging
import math
import time
from pathlib import Path

import pytest
from helpers.certificates import DAY, Authority, Pair

from pahq_server.access.tls import DAY_S, SOON_S, CertificateValidity, ExpiryWatch, TlsFiles, read_tls_files
from pahq_server.cli import main
from pahq_server.core.errors import InvalidRequestError

DATE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def server(authority: Authority) -> Pair:
    return authority.sign("server")


def test_what_goes_together(authority: Authority, server: Pair) -> None:
    contents = read_tls_files(TlsFiles(server.cert, server.key, authority.cert))
    assert (contents.cert, contents.key) == (server.cert_pem, server.key_pem)
    assert contents.client_ca == authority.cert.read_bytes()
    assert read_tls_files(TlsFiles(server.cert, server.key)).client_ca is None


def test_a_key_of_another_certificate(authority: Authority, server: Pair) -> None:
    other = authority.sign("other")
    with pytest.raises(InvalidRequestError, match=f"{other.key} is not the key of {server.cert}"):
        read_tls_files(TlsFiles(server.cert, other.key))


@pytest.mark.parametrize("option", ["tls-cert", "tls-key", "tls-client-ca"])
def test_a_file_that_is_not_there(option: str, authority: Authority, server: Pair, tmp_path: Path) -> None:
    paths = {"tls-cert": server.cert, "tls-key": server.key, "tls-client-ca": authority.cert}
    paths[option] = tmp_path / "nothing.pem"
    with pytest.raises(InvalidRequestError, match=r"cannot read .*nothing\.pem: No such file") as caught:
        read_tls_files(TlsFiles(*paths.values()))
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
        read_tls_files(TlsFiles(*paths.values()))
    assert option in caught.value.field


def test_a_key_with_a_password_is_refused_without_asking_for_it(authority: Authority) -> None:
    locked = authority.sign("locked", password=b"secret")
    with pytest.raises(InvalidRequestError, match="unencrypted key"):
        read_tls_files(TlsFiles(locked.cert, locked.key))


def test_a_certificate_of_a_server_is_no_authority(server: Pair) -> None:
    with pytest.raises(InvalidRequestError, match="no certificate of an authority"):
        read_tls_files(TlsFiles(server.cert, server.key, server.cert))


def test_a_certificate_that_has_expired(authority: Authority) -> None:
    expired = authority.sign("server", valid_for=-DAY)
    dates = rf"the certificate of CN=server in .*server\.cert\.pem has expired on {DATE}; it is {DATE} now"
    with pytest.raises(InvalidRequestError, match=dates) as caught:
        read_tls_files(TlsFiles(expired.cert, expired.key))
    assert caught.value.field == "tls-cert"
    assert "Renew it" in caught.value.detail


def test_a_certificate_that_is_not_valid_yet(server: Pair) -> None:
    with pytest.raises(InvalidRequestError, match=rf"is not valid before {DATE}; by the clock here"):
        read_tls_files(TlsFiles(server.cert, server.key), now=time.time() - 10 * DAY_S)


def test_authorities_of_clients_that_have_all_expired(tmp_path: Path, server: Pair) -> None:
    expired = Authority(tmp_path, "old", valid_for=-DAY)
    with pytest.raises(
        InvalidRequestError, match=rf"CN=old in .* has expired on {DATE}.*No client"
    ) as caught:
        read_tls_files(TlsFiles(server.cert, server.key, expired.cert))
    assert caught.value.field == "tls-client-ca"
    # A certificate that is no authority does not help.
    expired.cert.write_bytes(expired.cert.read_bytes() + server.cert_pem)
    with pytest.raises(InvalidRequestError, match="CN=old in "):
        read_tls_files(TlsFiles(server.cert, server.key, expired.cert))


def test_an_old_authority_of_clients_beside_a_new_one_is_told_of(
    tmp_path: Path, authority: Authority, server: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(
        Authority(tmp_path, "old", valid_for=-DAY).cert.read_bytes() + authority.cert.read_bytes()
    )
    contents = read_tls_files(TlsFiles(server.cert, server.key, both))
    assert contents.client_ca_expiry == pytest.approx(time.time() + DAY_S, abs=600)
    ExpiryWatch(contents.client_validity).check(time.time())
    (old,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "CN=old" in old.getMessage()
    assert "of clients with certificates of this authority fail" in old.getMessage()


def chained(tmp_path: Path, own: Pair, *above: Authority) -> TlsFiles:
    chain = tmp_path / "chain.pem"
    chain.write_bytes(b"".join([own.cert_pem, *(each.cert.read_bytes() for each in above)]))
    return TlsFiles(chain, own.key)


def test_a_chain_whose_middle_has_expired(tmp_path: Path, authority: Authority) -> None:
    expired = authority.authorize("middle", valid_for=-DAY)
    own = expired.sign("server")
    with pytest.raises(InvalidRequestError, match=r"CN=middle in .* has expired on .*It signed") as caught:
        read_tls_files(chained(tmp_path, own, expired))
    assert caught.value.field == "tls-cert"
    lasting = authority.authorize("middle", valid_for=DAY)
    assert len(read_tls_files(chained(tmp_path, lasting.sign("server"), lasting)).server_validity) == 2


def test_an_expired_root_in_the_chain_is_of_no_consequence(tmp_path: Path) -> None:
    root = Authority(tmp_path, "root", valid_for=-DAY)
    contents = read_tls_files(chained(tmp_path, root.sign("server"), root))
    assert [each.subject for each in contents.server_validity] == ["CN=server"]


def test_when_certificates_expire(authority: Authority, server: Pair) -> None:
    contents = read_tls_files(TlsFiles(server.cert, server.key, authority.cert))
    for expiry in (contents.server_expiry, contents.client_ca_expiry):
        assert expiry == pytest.approx(time.time() + DAY_S, abs=600)
    assert math.isnan(read_tls_files(TlsFiles(server.cert, server.key)).client_ca_expiry)


def test_the_log_tells_of_a_certificate_before_and_after_its_end(caplog: pytest.LogCaptureFixture) -> None:
    end = datetime.datetime(2030, 1, 31, tzinfo=datetime.UTC).timestamp()
    watch = ExpiryWatch([CertificateValidity("tls-cert", Path("tls.crt"), "CN=lab", end - 365 * DAY_S, end)])
    for hour in range(-40 * 24, 3 * 24 + 1):
        watch.check(end + hour * 3600)
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    # Once a day from two weeks before, and from its end on.
    assert [level for level, _ in told] == ["WARNING"] * 14 + ["ERROR"] * 3
    assert told[0][1].startswith(
        "--tls-cert: the certificate of CN=lab in tls.crt expires on 2030-01-31 00:00:00"
    )
    assert "has expired on 2030-01-31 00:00:00 UTC" in told[-1][1]
    assert "New connections of clients fail" in told[-1][1]
    assert SOON_S == 14 * DAY_S


def test_the_command_refuses_what_has_expired(
    authority: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    expired = authority.sign("server", valid_for=-DAY)
    options = ["--listen", "127.0.0.1:0", "--tls-cert", str(expired.cert), "--tls-key", str(expired.key)]
    assert main(["serve", "--ephemeral", *options]) == 2
    assert "tls-cert: the certificate of CN=server" in capsys.readouterr().err
