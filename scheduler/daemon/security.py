"""Who calls, and what they may do.

A `Guard` is made from the configuration, or refuses it: plain and open on loopback; anywhere
else TLS and tokens or client certificates. On plain loopback every caller is the local user
and an admin; as soon as tokens or client certificates are configured, every caller must show
one, loopback or not. Reading is open to every caller; queues say who may submit and manage.
"""

import hashlib
import hmac
import ipaddress
import logging
import os
import pwd
import secrets
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from scheduler.config import DaemonConfig, SecurityConfig
from scheduler.core.errors import InvalidInput, SchedulerError
from scheduler.core.model import Queue

log = logging.getLogger(__name__)

TOKEN_BYTES = 32
_HASH_LENGTH = hashlib.sha256().digest_size
_BEARER = "bearer "


class Unauthenticated(SchedulerError):
    """The daemon cannot tell who calls."""


class PermissionDenied(SchedulerError):
    """The daemon knows who calls, and they may not do this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who the daemon takes the other side for."""

    user: str
    is_admin: bool


class Guard:
    """Knows the callers, and holds what the server proves itself with."""

    def __init__(
        self,
        security: SecurityConfig,
        *,
        tokens: "TokenFile | None",
        credentials: grpc.ServerCredentials | None,
    ) -> None:
        self.credentials = credentials
        self._admins = frozenset(security.admins)
        self._tokens = tokens
        self._uses_certificates = security.client_ca is not None
        self._is_open = tokens is None and not self._uses_certificates
        self.local = Caller(user=security.local_user or _os_user(), is_admin=True)

    @classmethod
    def from_config(cls, config: DaemonConfig) -> "Guard":
        """Check the configuration against its files; `InvalidInput` names the field."""
        security = config.security
        _require_protection(config.listen, security)
        return cls(
            security,
            tokens=TokenFile.open(security.token_file) if security.token_file else None,
            credentials=_server_credentials(security),
        )

    @property
    def is_open(self) -> bool:
        """Whether callers need not say who they are: plain loopback."""
        return self._is_open

    def caller(
        self,
        metadata: Iterable[tuple[str, str | bytes]],
        auth_context: Mapping[str, Iterable[bytes]],
    ) -> Caller:
        """Return who calls, by token or client certificate; or raise `Unauthenticated`."""
        if self._is_open:
            return self.local
        user = self._user_of_token(metadata) or self._user_of_certificate(auth_context)
        if user is None:
            raise Unauthenticated("a token is required: authorization: Bearer TOKEN")
        return Caller(user=user, is_admin=user in self._admins)

    def _user_of_token(self, metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
        if self._tokens is None:
            return None
        for key, value in metadata:
            if key == "authorization" and isinstance(value, str):
                if not value.lower().startswith(_BEARER):
                    raise Unauthenticated("the authorization must be a bearer token")
                user = self._tokens.user_of(value[len(_BEARER) :].strip())
                if user is None:
                    raise Unauthenticated("the token is not known")
                return user
        return None

    def _user_of_certificate(self, auth_context: Mapping[str, Iterable[bytes]]) -> str | None:
        """Return the common name of a verified certificate, or its first alternative name."""
        if not self._uses_certificates:
            return None
        for key in ("x509_common_name", "x509_subject_alternative_name"):
            for name in auth_context.get(key, ()):
                if name:
                    return name.decode(errors="replace")
        return None


def may_submit(caller: Caller, queue: Queue) -> bool:
    """Return whether the caller may put jobs into the queue."""
    return (
        caller.is_admin
        or not queue.submitters
        or caller.user in queue.submitters
        or caller.user in queue.admins
    )


def may_manage(caller: Caller, submitter: str, queue: Queue | None) -> bool:
    """Return whether the caller may change a job, signal it, read its logs and environment."""
    return (
        caller.is_admin
        or caller.user == submitter
        or (queue is not None and caller.user in queue.admins)
    )


class TokenFile:
    """The known tokens, read again when the file changes.

    A line is `USER SHA256`: the user and the hash of their token in hex; `#` begins a comment.
    Only hashes are kept, so that a copy of the file lets nobody in.
    """

    def __init__(self, path: Path, users: dict[bytes, str], version: tuple[int, ...]) -> None:
        self._path = path
        self._users = users
        self._version = version

    @classmethod
    def open(cls, path: Path) -> "TokenFile":
        """Read the file; `InvalidInput` says what is wrong with it."""
        version = _version(path)
        return cls(path, _read_tokens(path), version)

    def user_of(self, token: str) -> str | None:
        """Return whose token it is."""
        self._refresh()
        shown = _token_hash(token)
        user = None
        for known, owner in self._users.items():  # all of them: time tells nothing
            if hmac.compare_digest(known, shown):
                user = owner
        return user

    def _refresh(self) -> None:
        """Follow the file, so that a token is revoked without a restart."""
        try:
            version = _version(self._path)
            if version == self._version:
                return
            self._users = _read_tokens(self._path)
            self._version = version
            log.info("read %d tokens from %s", len(self._users), self._path)
        except InvalidInput as error:
            log.error("kept the known tokens: %s", error)  # noqa: TRY400  the error says it all


def new_token(user: str) -> tuple[str, str]:
    """Return a token to hand to the user, and the line of the token file that admits it."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    return token, token_line(user, token)


def token_line(user: str, token: str) -> str:
    """Return the line of the token file that admits the token."""
    return f"{user} {_token_hash(token).hex()}"


def _token_hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _version(path: Path) -> tuple[int, ...]:
    try:
        stat = path.stat()
    except OSError as error:
        raise InvalidInput("security.token_file", f"cannot be read: {error}") from error
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino)


def _read_tokens(path: Path) -> dict[bytes, str]:
    field = "security.token_file"
    _require_private(field, path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(field, f"cannot be read: {error}") from error
    users: dict[bytes, str] = {}
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            user, digits = words
            digest = bytes.fromhex(digits)
        except ValueError:
            digest, user = b"", ""
        if len(digest) != _HASH_LENGTH:
            raise InvalidInput(field, f"{path}:{number}: must be USER SHA256-IN-HEX")
        users[digest] = user
    return users


def _require_private(field: str, path: Path) -> None:
    """Refuse a secret that others on this machine could read or change."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise InvalidInput(field, f"cannot be read: {error}") from error
    if mode & 0o027:
        raise InvalidInput(field, f"{path} must be for its owner only: chmod 600 {path}")


def is_loopback(listen: str) -> bool:
    """Return whether `HOST:PORT` can be reached from this machine only."""
    host = listen.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _require_protection(listen: str, security: SecurityConfig) -> None:
    if (security.tls_cert is None) != (security.tls_key is None):
        missing = "tls_cert" if security.tls_cert is None else "tls_key"
        raise InvalidInput(f"security.{missing}", "tls_cert and tls_key go together")
    if security.client_ca is not None and security.tls_cert is None:
        raise InvalidInput("security.client_ca", "needs tls_cert and tls_key")
    if is_loopback(listen):
        return
    if security.tls_cert is None:
        rule = f"is required to listen on {listen}: only loopback may go without TLS"
        raise InvalidInput("security.tls_cert", rule)
    if security.token_file is None and security.client_ca is None:
        rule = f"or client_ca is required to listen on {listen}: callers must be known"
        raise InvalidInput("security.token_file", rule)


def _server_credentials(security: SecurityConfig) -> grpc.ServerCredentials | None:
    if security.tls_cert is None or security.tls_key is None:
        return None
    _require_private("security.tls_key", security.tls_key)
    try:
        # Only to hear of a wrong or foreign key now, and by name: gRPC would just not listen.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            security.tls_cert, security.tls_key, password=""
        )
    except (OSError, ValueError) as error:
        rule = f"is no certificate that tls_key belongs to: {error}"
        raise InvalidInput("security.tls_cert", rule) from error
    client_ca = _client_ca(security.client_ca) if security.client_ca else None
    return grpc.ssl_server_credentials(
        [(security.tls_key.read_bytes(), security.tls_cert.read_bytes())],
        root_certificates=client_ca,
        require_client_auth=client_ca is not None,
    )


def _client_ca(path: Path) -> bytes:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cafile=path)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise InvalidInput("security.client_ca", f"is no certificate: {error}") from error


def _os_user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a user id without a name, as in containers
        return str(os.geteuid())
