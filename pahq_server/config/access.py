"""Who may call the server, and how much.

Refuses settings that would leave a server open to everybody, or to nobody.
"""

from __future__ import annotations

from dataclasses import dataclass

from pahq_server.access import tls
from pahq_server.access.access import AUTH_MODES, AccessConfig
from pahq_server.access.limits import CallLimits
from pahq_server.access.tokens import USER_FORM, is_user
from pahq_server.config.options import option
from pahq_server.config.values import Count, Name, PemFile, Rate, is_loopback
from pahq_server.core.errors import InvalidRequestError


@dataclass(frozen=True)
class AccessOptions:
    """Encryption, how callers are known, and the limits of their calls."""

    tls_cert: PemFile | None = option(None, "encrypt, with this certificate (chain)")
    tls_key: PemFile | None = option(None, "its private key")
    tls_client_ca: PemFile | None = option(None, "ask clients for certificates signed by these")
    auth: str = option(
        "auto",
        "how to know callers: by tokens once there are any (auto), by tokens only, by the common names "
        "of their certificates, or not at all",
        choices=AUTH_MODES,
    )
    certificate_admin: tuple[Name, ...] = option(
        (), "common name with admin rights, for --auth certificates; may be repeated"
    )
    insecure: bool = option(
        False, "allow an address that is not loopback without TLS or without callers being known"
    )
    rate: Rate = option(CallLimits.rate, "calls per second and user, over time")
    burst: Count = option(CallLimits.burst, "calls that a user may make at once after a pause")
    max_calls: Count = option(CallLimits.calls, "calls under way at once, streams apart")
    max_user_calls: Count = option(CallLimits.user_calls, "of these, of one user")
    max_streams: Count = option(CallLimits.streams, "streams under way at once")
    max_user_streams: Count = option(CallLimits.user_streams, "of these, of one user")

    def config(self, listen: str) -> AccessConfig:
        """Returns the configuration of the access control. `refusal` must have returned None.

        Args:
            listen: ``HOST:PORT`` of the server.
        """
        exposed = not (self.insecure or is_loopback(listen))
        return AccessConfig(
            # On an open address a server without tokens refuses everybody instead of letting everybody in.
            auth="tokens" if self.auth == "auto" and exposed else self.auth,
            certificate_admins=self.certificate_admin,
            limits=CallLimits(
                rate=self.rate,
                burst=self.burst,
                calls=self.max_calls,
                user_calls=self.max_user_calls,
                streams=self.max_streams,
                user_streams=self.max_user_streams,
            ),
            tls=self._tls_files(),
        )

    def refusal(self, listen: str, ephemeral: bool) -> str | None:
        """Says why a server must not or cannot start with these options; None if it may.

        Args:
            listen: ``HOST:PORT`` of the server.
            ephemeral: whether nothing is kept on disk, so that there can be no tokens.
        """
        return (
            self._contradiction()
            or self._unreadable_file()
            or self._exposure(listen)
            or self._unreachable(listen, ephemeral)
        )

    def _contradiction(self) -> str | None:
        encrypted = self.tls_cert is not None
        if encrypted != (self.tls_key is not None):
            return "--tls-cert and --tls-key go together"
        if self.tls_client_ca is not None and not encrypted:
            return "--tls-client-ca needs --tls-cert and --tls-key"
        if self.auth == "certificates" and self.tls_client_ca is None:
            return "--auth certificates needs --tls-client-ca"
        if self.certificate_admin and self.auth != "certificates":
            return (
                "--certificate-admin needs --auth certificates: without it nobody is known by a certificate"
            )
        for name in self.certificate_admin:
            if not is_user(name):
                return f"--certificate-admin {name!r} is no user name, so it fits no certificate: {USER_FORM}"
        return None

    def _unreadable_file(self) -> str | None:
        files = self._tls_files()
        try:
            if files is not None:
                tls.read_tls_files(files)
        except InvalidRequestError as error:
            return str(error)
        return None

    def _exposure(self, listen: str) -> str | None:
        if self.insecure or is_loopback(listen):
            return None
        if self.tls_cert is None:
            lack = "calls would not be encrypted. Give --tls-cert and --tls-key, listen on 127.0.0.1"
        elif self.auth == "none":
            lack = "anybody could call. Leave out --auth none, listen on 127.0.0.1"
        else:
            return None
        return f"{listen} is open to the network: {lack}, or pass --insecure if the network is trusted."

    def _unreachable(self, listen: str, ephemeral: bool) -> str | None:
        if ephemeral and self.config(listen).auth == "tokens":
            return (
                "--ephemeral keeps no tokens, so nobody could call. Give --data-dir instead, or --auth none."
            )
        return None

    def _tls_files(self) -> tls.TlsFiles | None:
        if self.tls_cert is None or self.tls_key is None:
            return None
        return tls.TlsFiles(self.tls_cert, self.tls_key, self.tls_client_ca)
