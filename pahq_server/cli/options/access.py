"""Options about who may call the server, and how much."""

from __future__ import annotations

import argparse
from pathlib import Path

from pahq_server.access import tls
from pahq_server.access.access import AUTH_MODES, AccessConfig
from pahq_server.access.limits import CallLimits
from pahq_server.access.tokens import USER_FORM, is_user
from pahq_server.cli import values
from pahq_server.cli.options.listening import is_loopback
from pahq_server.core.errors import InvalidRequestError


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tls-cert", type=Path, metavar="PEM", help="encrypt, with this certificate (chain)")
    parser.add_argument("--tls-key", type=Path, metavar="PEM", help="its private key")
    parser.add_argument(
        "--tls-client-ca", type=Path, metavar="PEM", help="ask clients for certificates signed by these"
    )
    parser.add_argument(
        "--auth",
        choices=AUTH_MODES,
        default="auto",
        help="how to know callers: by tokens once there are any (auto), by tokens only, by the common names "
        "of their certificates, or not at all (default: %(default)s)",
    )
    parser.add_argument(
        "--certificate-admin",
        action="append",
        default=[],
        metavar="NAME",
        help="common name with admin rights, for --auth certificates; may be repeated",
    )
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="allow an address that is not loopback without TLS or without callers being known",
    )
    _add_limits(parser)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    usual = CallLimits()
    numbers = (
        ("--burst", usual.burst, "calls that a user may make at once after a pause"),
        ("--max-calls", usual.calls, "calls under way at once, streams apart"),
        ("--max-user-calls", usual.user_calls, "of these, of one user"),
        ("--max-streams", usual.streams, "streams under way at once"),
        ("--max-user-streams", usual.user_streams, "of these, of one user"),
    )
    parser.add_argument(
        "--rate",
        type=values.rate,
        default=usual.rate,
        metavar="RATE",
        help="calls per second and user, over time (default: %(default)g)",
    )
    for name, default, help in numbers:
        parser.add_argument(
            name, type=values.count, default=default, metavar="N", help=f"{help} (default: %(default)s)"
        )


def refusal(options: argparse.Namespace) -> str | None:
    """Why the server must not or cannot listen so; None if it may."""
    return _contradiction(options) or _unreadable(options) or _exposure(options) or _futility(options)


def _contradiction(options: argparse.Namespace) -> str | None:
    encrypted = options.tls_cert is not None
    if encrypted != (options.tls_key is not None):
        return "--tls-cert and --tls-key go together"
    if options.tls_client_ca is not None and not encrypted:
        return "--tls-client-ca needs --tls-cert and --tls-key"
    if options.auth == "certificates" and options.tls_client_ca is None:
        return "--auth certificates needs --tls-client-ca"
    if options.certificate_admin and options.auth != "certificates":
        return "--certificate-admin needs --auth certificates: without it nobody is known by a certificate"
    for name in options.certificate_admin:
        if not is_user(name):
            return f"--certificate-admin {name!r} is no user name, so it fits no certificate: {USER_FORM}"
    return None


def _unreadable(options: argparse.Namespace) -> str | None:
    files = _files(options)
    try:
        if files is not None:
            tls.read_tls_files(files)
    except InvalidRequestError as error:
        return str(error)
    return None


def _exposure(options: argparse.Namespace) -> str | None:
    if options.insecure or is_loopback(options.listen):
        return None
    if options.tls_cert is None:
        lack = "calls would not be encrypted. Give --tls-cert and --tls-key, listen on 127.0.0.1"
    elif options.auth == "none":
        lack = "anybody could call. Leave out --auth none, listen on 127.0.0.1"
    else:
        return None
    return f"{options.listen} is open to the network: {lack}, or pass --insecure if the network is trusted."


def _futility(options: argparse.Namespace) -> str | None:
    if options.ephemeral and config(options).auth == "tokens":
        return "--ephemeral keeps no tokens, so nobody could call. Give --data-dir instead, or --auth none."
    return None


def config(options: argparse.Namespace) -> AccessConfig:
    """What `refusal` has nothing against."""
    exposed = not (options.insecure or is_loopback(options.listen))
    return AccessConfig(
        # Where anybody can knock, nobody is let in for want of tokens.
        auth="tokens" if options.auth == "auto" and exposed else options.auth,
        certificate_admins=tuple(options.certificate_admin),
        limits=CallLimits(
            rate=options.rate,
            burst=options.burst,
            calls=options.max_calls,
            user_calls=options.max_user_calls,
            streams=options.max_streams,
            user_streams=options.max_user_streams,
        ),
        tls=_files(options),
    )


def _files(options: argparse.Namespace) -> tls.TlsFiles | None:
    if options.tls_cert is None:
        return None
    return tls.TlsFiles(options.tls_cert, options.tls_key, options.tls_client_ca)
