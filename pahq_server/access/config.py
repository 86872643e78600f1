"""What a server is told about access, and the parts that follow from it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

from pahq_server.access.identity import Anyone, Authenticator, CertificateHolders, TokenHolders
from pahq_server.access.limits import CallLimits
from pahq_server.access.table import TokenTable
from pahq_server.access.tls import TlsFiles
from pahq_server.access.tokens import Token

logger = logging.getLogger(__name__)

# How callers are known: by tokens once there are any, by tokens only, by certificates, or not at all.
MODES = ("auto", "tokens", "certificates", "none")


@dataclass(frozen=True)
class AccessConfig:
    """Who may call, and how much.

    Args:
        auth: one of `MODES`.
        certificate_admins: users with admin rights, where certificates tell who calls.
        limits: of calls.
        tls: files of certificates; None for plaintext.
    """

    auth: str = "auto"
    certificate_admins: tuple[str, ...] = ()
    limits: CallLimits = field(default_factory=CallLimits)
    tls: TlsFiles | None = None

    @contextmanager
    def authenticating(self, table: TokenTable) -> Iterator[Authenticator]:
        """An authenticator for a server: while the body runs, it does not make callers wait for the database.

        Raises StorageError where tokens are needed and cannot be read.
        """
        authenticator = self.authenticator(table)
        with authenticator.kept_fresh() if isinstance(authenticator, TokenHolders) else nullcontext():
            yield authenticator

    def authenticator(self, table: TokenTable) -> Authenticator:
        """Raises StorageError where tokens are needed and cannot be read."""
        if self.auth == "none":
            return Anyone()
        if self.auth == "certificates":
            return CertificateHolders(self.certificate_admins)
        if self.auth == "tokens":
            _warn_of_no_token(table.all())
        return TokenHolders(table, Anyone() if self.auth == "auto" else None)


def _warn_of_no_token(tokens: Sequence[Token]) -> None:
    if not tokens:
        logger.warning("no token exists: every call is refused until one is created (pahq-server token)")
    elif not any(token.valid(time.time()) for token in tokens):
        logger.warning(
            "all %d tokens have expired or were revoked: every call is refused until one is created "
            "(pahq-server token)",
            len(tokens),
        )
