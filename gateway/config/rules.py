"""The rules for a configuration that types cannot express: keys, accounts, files, listeners.

Every check adds its errors to a list or raises one :class:`SettingError`; values that may be
secrets are never part of an error.
"""

from __future__ import annotations

import os
import re
import ssl
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Any

import msgspec

from gateway.config.endpoints import (
    base_url,
    check_proxy,
    check_store,
    checked_url,
    endpoint_problem,
    is_loopback,
    same_place,
)
from gateway.config.errors import SettingError, SettingErrors
from gateway.config.settings import (
    MASK,
    AccountSettings,
    KeySettings,
    OAuthSettings,
    Section,
    Settings,
    StateSettings,
    UpstreamWebSocketSettings,
)

_HOST_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}")
_ENDPOINT_WORDS = "expected a Twisted endpoint such as tcp:8080:interface=127.0.0.1"
_NAME_LIMIT = 128
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CREDENTIAL = re.compile(r"[\x21-\x7e]+")
#: Some programs keep the quotes of a file of variables (`docker --env-file`); no key has them.
_QUOTES = "\"'"
#: RFC 6749 appendix A: VSCHAR, which includes the space.
_OAUTH_VALUE = re.compile(r"[\x20-\x7e]+")
#: Editors for Windows leave it before the key; read as Latin-1.
_BYTE_ORDER_MARK = "\xef\xbb\xbf"
_AZURE = "such as https://NAME.openai.azure.com/openai/v1"
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
#: The HTTP client frames its requests itself.
_FRAMING_HEADERS = frozenset(
    ["connection", "content-length", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"]
)
_FRAMING = "expected another header; the gateway sets this one itself"
_MEMBER = re.compile(r"[a-z][a-z0-9_]*")
_BETA = re.compile(r"[!-+\--~]+")
_PATH = re.compile(r"/[!\"$-~]*")
#: Some services take the key as a subprotocol, too; but subprotocols are shown.
_KEY_SUBPROTOCOL = "api-key."
#: Members that every turn needs; two of them have settings of their own.
_NEEDED = frozenset(["input", "model", "previous_response_id", "store", "stream", "type"])
#: No file of a configuration is larger; reading a device would never end.
_FILE_BYTES = 4 * 1024 * 1024
#: A shorter passphrase of the state could be guessed.
_SHORTEST_PASSPHRASE = 16


def apply_rules(settings: Settings, errors: SettingErrors) -> Settings:
    """Check the settings as a whole.

    :param errors: takes the errors that are found.
    :return: the settings with URLs and digests in plain form, as far as they are right.
    """
    _check_names("keys", [key.name for key in settings.keys], errors)
    _check_names("accounts", [account.name for account in settings.accounts], errors)
    if settings.admin.token is not None:
        with errors.collect():
            _check_credential(settings.admin.token, "admin.token")
    for index, host in enumerate(settings.admin.hosts):
        if not _HOST_NAME.fullmatch(host):
            words = "expected a host name such as gateway.internal, without scheme and port"
            errors.add(f"admin.hosts[{index}]", repr(host), words)
    keys = _apply_to_keys(settings.keys, errors)
    accounts = _apply_to_accounts(settings.accounts, errors)
    _check_listeners(settings, errors)
    _check_state(settings.state, errors)
    if settings.log.content is not None and settings.log.content.directory is not None:
        with errors.collect():
            _check_private_place(settings.log.content.directory, "log.content.directory")
    return msgspec.structs.replace(settings, keys=keys, accounts=accounts)


# --- listeners -----------------------------------------------------------------------------


def _check_listeners(settings: Settings, errors: SettingErrors) -> None:
    for path, text in (("listen", settings.listen), ("admin.listen", settings.admin.listen)):
        problem = text and endpoint_problem(text)
        if problem:
            errors.add(path, repr(text), f"{_ENDPOINT_WORDS}: {problem}")
    if endpoint_problem(settings.listen):
        return
    if not settings.keys and not is_loopback(settings.listen):
        words = "expected at least one key, because other machines can reach "
        words += f"listen '{settings.listen}'; without keys listen on 127.0.0.1, ::1 or unix:"
        errors.add("keys", "[]", words)
    admin = settings.admin
    if admin.listen is None or endpoint_problem(admin.listen):
        return
    if same_place(settings.listen, admin.listen):
        errors.add("admin.listen", repr(admin.listen), "expected another place than listen")
    elif admin.token is None and not is_loopback(admin.listen):
        words = "expected a token, because other machines can reach "
        words += f"admin.listen '{admin.listen}'; without one listen on 127.0.0.1, ::1 or unix:"
        errors.add("admin.token", "null", words)


# --- state ---------------------------------------------------------------------------------


def _check_state(state: StateSettings, errors: SettingErrors) -> None:
    with errors.collect():
        check_store(state.store, "state.store")
    if state.encryption_key and state.encryption_key_file is not None:
        words = "expected one of encryption_key, encryption_key_file; got both"
        errors.add("state.encryption_key_file", words)
    if state.encryption_key and len(state.encryption_key) < _SHORTEST_PASSPHRASE:
        words = f"expected at least {_SHORTEST_PASSPHRASE} characters, such as openssl rand -hex 32"
        errors.add("state.encryption_key", MASK, words)
    if state.encryption_key_file is not None:
        with errors.collect():
            held = _read(state.encryption_key_file, "state.encryption_key_file").strip()
            if len(held) < _SHORTEST_PASSPHRASE:
                words = f"expected a file with at least {_SHORTEST_PASSPHRASE} characters"
                raise SettingError(
                    "state.encryption_key_file", _shown(state.encryption_key_file), words
                )


# --- keys and accounts ---------------------------------------------------------------------


def _apply_to_keys(keys: Sequence[KeySettings], errors: SettingErrors) -> tuple[KeySettings, ...]:
    """The keys with digests in lower case; no two entries may mean the same key."""
    applied = tuple(_apply_to_key(key, f"keys[{i}]", errors) for i, key in enumerate(keys))
    first: dict[str, int] = {}
    for index, key in enumerate(applied):
        if key.key is None and key.key_sha256 is None:
            continue
        plain = (key.key or "").encode(errors="surrogatepass")
        digest = key.key_sha256 or sha256(plain).hexdigest()
        if digest in first:
            member = "key" if key.key is not None else "key_sha256"
            taken = f"keys[{first[digest]}] has this key already; expected each key once"
            errors.add(f"keys[{index}].{member}", MASK, taken)
        first.setdefault(digest, index)
    return applied


def _apply_to_key(key: KeySettings, path: str, errors: SettingErrors) -> KeySettings:
    with errors.collect():
        _check_one_of(key, path, "key", "key_sha256")
    _check_models(key.models, f"{path}.models", errors)
    if key.key is not None:
        with errors.collect():
            _check_credential(key.key, f"{path}.key")
    if key.key_sha256 is None:
        return key
    digest = key.key_sha256.lower()
    if not _DIGEST.fullmatch(digest):
        words = "expected the SHA-256 of the key, 64 hexadecimal digits"
        errors.add(f"{path}.key_sha256", MASK, words)
    return msgspec.structs.replace(key, key_sha256=digest)


def _apply_to_accounts(
    accounts: Sequence[AccountSettings], errors: SettingErrors
) -> tuple[AccountSettings, ...]:
    """The accounts with their base URLs in plain form."""
    applied = tuple(
        _apply_to_account(each, f"accounts[{index}]", errors) for index, each in enumerate(accounts)
    )
    if applied and not any(each.enabled for each in applied):
        words = "all of them have 'enabled: false'; expected at least one without it"
        errors.add("accounts", words)
    _check_token_files(applied, errors)
    return applied


def _apply_to_account(
    account: AccountSettings, path: str, errors: SettingErrors
) -> AccountSettings:
    _check_credentials(account, path, errors)
    with errors.collect():
        _check_auth_header(account.auth_header, f"{path}.auth_header")
    _check_headers(account.headers, f"{path}.headers", errors)
    for name in account.headers:
        if name.lower() == account.auth_header.lower():
            words = "expected another header; this one carries the key, see auth_header"
            errors.add(f"{path}.headers.{name}", words)
    _check_models(account.models, f"{path}.models", errors)
    for asked, own in account.aliases.items():
        if not asked.strip() or not own.strip():
            words = "expected a model's name for clients and this account's name for it"
            errors.add(f"{path}.aliases.{asked}", repr(own), words)
    _check_members(account.strip, f"{path}.strip", errors)
    _check_websocket(account.websocket, f"{path}.websocket", errors)
    _check_egress(account, path, errors)
    plain = account.base_url
    with errors.collect():
        if not plain:
            words = _AZURE if account.preset == "azure" else "unless its preset knows one"
            raise SettingError(f"{path}.base_url", f"missing; every entry needs it, {words}")
        plain = base_url(plain, f"{path}.base_url")
    return msgspec.structs.replace(account, base_url=plain)


def _check_members(members: Sequence[str], path: str, errors: SettingErrors) -> None:
    for index, member in enumerate(members):
        where = f"{path}[{index}]"
        if not _MEMBER.fullmatch(member):
            errors.add(where, repr(member), "expected the name of a request's member")
        elif member in _NEEDED:
            words = "expected another member; turns need this one (see continuity and store)"
            errors.add(where, repr(member), words)


def _check_websocket(
    websocket: UpstreamWebSocketSettings, path: str, errors: SettingErrors
) -> None:
    if websocket.spare_sockets > websocket.max_sockets:
        words = f"expected at most max_sockets, which is {websocket.max_sockets}"
        errors.add(f"{path}.spare_sockets", str(websocket.spare_sockets), words)
    if not _PATH.fullmatch(websocket.path):
        shown = repr(websocket.path.partition("?")[0])
        errors.add(f"{path}.path", shown, "expected a path such as /responses, already encoded")
    if websocket.beta is not None and not _BETA.fullmatch(websocket.beta):
        words = "expected one value of OpenAI-Beta, without spaces and commas"
        errors.add(f"{path}.beta", repr(websocket.beta), words)
    for index, control in enumerate(websocket.controls):
        if control in websocket.controls[:index]:
            errors.add(
                f"{path}.controls[{index}]", repr(control), "given twice; expected each once"
            )
    for index, name in enumerate(websocket.subprotocols):
        where = f"{path}.subprotocols[{index}]"
        if not _HEADER_NAME.fullmatch(name):
            errors.add(where, MASK, "expected a name without spaces, commas and slashes")
        elif _KEY_SUBPROTOCOL in name.lower():
            errors.add(where, MASK, "expected one without a key, which goes in 'key'")
        elif name in websocket.subprotocols[:index]:
            errors.add(where, repr(name), "given twice; expected each once")  # RFC 6455 §4.1


def _check_egress(account: AccountSettings, path: str, errors: SettingErrors) -> None:
    if account.proxy is not None:
        with errors.collect():
            check_proxy(account.proxy, f"{path}.proxy")
    if account.ca_file is not None:
        with errors.collect():
            _check_authorities(account.ca_file, f"{path}.ca_file")
    if account.client_cert_file is not None:
        with errors.collect():
            _check_certificate(account.client_cert_file, account.client_key_file, path)
    elif account.client_key_file is not None:
        where, shown = f"{path}.client_key_file", _shown(account.client_key_file)
        errors.add(where, shown, "expected client_cert_file with it")


# --- credentials ---------------------------------------------------------------------------


def _check_credentials(account: AccountSettings, path: str, errors: SettingErrors) -> None:
    with errors.collect():
        _check_one_of(account, path, "key", "key_file", "oauth")
    if account.key is not None:
        with errors.collect():
            _check_credential(account.key, f"{path}.key")
    if account.key_file is not None:
        with errors.collect():
            _check_key_file(account.key_file, f"{path}.key_file")
    if account.oauth is not None:
        _check_oauth(account.oauth, f"{path}.oauth", errors)


def _check_one_of(entry: Section, path: str, *names: str) -> None:
    """Exactly one of these members is given."""
    given = [name for name in names if getattr(entry, name) is not None]
    if len(given) != 1:
        words = f"expected one of {', '.join(names)}; got {' and '.join(given) or 'none'}"
        raise SettingError(path, words)


def _check_credential(value: str, path: str) -> None:
    """The value can be sent in a header."""
    if not _CREDENTIAL.fullmatch(value):
        words = "expected printable ASCII characters without spaces or line breaks"
        raise SettingError(path, MASK, words)
    if len(value) > 1 and value[0] == value[-1] and value[0] in _QUOTES:
        raise SettingError(path, MASK, "expected it without the quotes around it")


def _check_key_file(name: str, where: str) -> None:
    held = _read(name, where).decode("latin-1").strip()
    if not held or not held.isascii() or not held.isprintable() or " " in held:
        words = "expected a file with one key in it and nothing else"
        if held.startswith(_BYTE_ORDER_MARK):
            words += "; it begins with a byte order mark, which editors may hide"
        raise SettingError(where, _shown(name), words)


def _check_oauth(oauth: OAuthSettings, path: str, errors: SettingErrors) -> None:
    with errors.collect():
        words = "the client's go in client_id, client_secret"
        checked_url(oauth.token_url, f"{path}.token_url", words)
    for name in ("client_id", "client_secret", "refresh_token", "scope"):
        value = getattr(oauth, name)
        if value is not None and not _OAUTH_VALUE.fullmatch(value):
            words = "expected printable ASCII characters without line breaks"
            errors.add(f"{path}.{name}", MASK, words)
    with errors.collect():
        _check_writable_place(oauth.token_file, f"{path}.token_file")
        if not _holds_tokens(oauth.token_file, f"{path}.token_file") and (
            oauth.refresh_token is None
        ):
            words = "missing; expected the first refresh token, because token_file does not hold "
            raise SettingError(f"{path}.refresh_token", f"{words}one")


def _check_token_files(accounts: Sequence[AccountSettings], errors: SettingErrors) -> None:
    """No two accounts keep their tokens in the same file."""
    first: dict[str, int] = {}
    for index, account in enumerate(accounts):
        if account.oauth is None:
            continue
        name = place = account.oauth.token_file
        with suppress(ValueError):  # a NUL in it, which _check_writable_place reports
            place = os.path.realpath(name)
        if place in first:
            words = f"accounts[{first[place]}] has this file already; expected each file once"
            errors.add(f"accounts[{index}].oauth.token_file", _shown(name), words)
        first.setdefault(place, index)


# --- names and headers ---------------------------------------------------------------------


def _check_names(section: str, names: Sequence[str], errors: SettingErrors) -> None:
    """Every name of a section can be shown and stands once."""
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        path = f"{section}[{index}].name"
        if not name.isprintable() or name != name.strip() or len(name) > _NAME_LIMIT:
            words = f"expected at most {_NAME_LIMIT} printable characters, no space at either end"
            errors.add(path, repr(name[:_NAME_LIMIT]), words)
        elif name in first:
            taken = f"{section}[{first[name]}] has this name already; expected each name once"
            errors.add(path, repr(name), taken)
        first.setdefault(name, index)


def _check_models(patterns: Sequence[str], path: str, errors: SettingErrors) -> None:
    for index, pattern in enumerate(patterns):
        if not pattern.strip():
            words = "expected a model name or a pattern such as gpt-5*"
            errors.add(f"{path}[{index}]", repr(pattern), words)


def _check_auth_header(name: str, path: str) -> None:
    """It is a header's name; anything else may be a whole line with the key, and is masked."""
    if not _HEADER_NAME.fullmatch(name):
        raise SettingError(path, MASK, "expected the name of an HTTP header such as api-key")
    if name.lower() in _FRAMING_HEADERS:
        raise SettingError(path, repr(name), _FRAMING)


def _check_headers(headers: Mapping[str, str], path: str, errors: SettingErrors) -> None:
    """They can be sent, and each is given once."""
    seen: set[str] = set()
    for name, value in headers.items():
        here = f"{path}.{name}"
        if not _HEADER_NAME.fullmatch(name):
            errors.add(here, "expected an HTTP header name")
        elif name.lower() in _FRAMING_HEADERS:
            errors.add(here, _FRAMING)
        elif name.lower() in seen:
            errors.add(here, "given twice in different case; expected once")
        elif not _HEADER_VALUE.fullmatch(value):
            errors.add(here, MASK, "expected printable ASCII without line breaks")
        seen.add(name.lower())


# --- files ---------------------------------------------------------------------------------


def _read(path: str, where: str) -> bytes:
    """The content of the file that the setting ``where`` names."""
    try:
        # Opening a pipe would wait for its writer.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise SettingError(where, _shown(path), "not a file; expected one that can be read")
        with open(path, "rb") as file:
            return file.read(_FILE_BYTES)
    except OSError as error:
        words = f"{error.strerror or 'unusable name'}; expected a file that can be read"
        if path.startswith("~"):
            words += ", with its whole path: ~ is not expanded"
        raise SettingError(where, _shown(path), words) from None
    except ValueError:  # a NUL in the name
        raise SettingError(where, _shown(path), "expected the name of a file") from None


def _check_writable_place(path: str, where: str) -> None:
    """The gateway can keep a file of this name: its directory exists and may be written to."""
    folder = os.path.dirname(path) or "."
    if not _can_be_named(path) or not os.path.isdir(folder) or os.path.isdir(path):
        words = "expected the name of a file in a directory that exists"
        raise SettingError(where, _shown(path), words)
    if not os.access(folder, os.W_OK | os.X_OK):
        words = "expected a directory that the gateway may write to, to replace the file"
        raise SettingError(where, _shown(path), words)


def _check_private_place(path: str, where: str) -> None:
    """A directory that nobody else can enter, or the name of one that can be made."""
    words = "expected the whole path of a directory; the one that it is in must exist"
    if not path.startswith("/") or not _can_be_named(path):
        raise SettingError(where, _shown(path), words)
    place = path
    if not os.path.exists(path):
        place = os.path.dirname(path.rstrip("/"))
    elif os.path.isdir(path) and stat.S_IMODE(os.stat(path).st_mode) & 0o077:
        words = "others may enter this directory; expected one of mode 0700, or a new name"
        raise SettingError(where, _shown(path), words)
    if not os.path.isdir(place):
        raise SettingError(where, _shown(path), words)
    if not os.access(place, os.W_OK | os.X_OK):
        words = "expected a directory that the gateway may write to, or make there"
        raise SettingError(where, _shown(path), words)


def _holds_tokens(path: str, where: str) -> bool:
    """Whether the file has a refresh token. It need not exist, but it may hold nothing else."""
    content = _read(path, where) if os.path.exists(path) else b""
    if not content.strip():
        return False
    try:
        held: Any = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        held = None
    token = held.get("refresh_token") if isinstance(held, dict) else None
    if not isinstance(token, str) or not token:
        words = 'expected JSON such as {"refresh_token": "..."}, or no such file yet'
        raise SettingError(where, _shown(path), words)
    return True


def _check_authorities(path: str, where: str) -> None:
    """The file holds certificates to trust."""
    _read(path, where)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except (ssl.SSLError, OSError):
        raise SettingError(where, _shown(path), "expected certificates in PEM form") from None


def _check_certificate(certificate: str, key: str | None, path: str) -> None:
    """The certificate and the key of an account belong together."""
    where = f"{path}.client_cert_file"
    _read(certificate, where)
    if key is not None:
        _read(key, f"{path}.client_key_file")
    try:
        # The password keeps OpenSSL from asking at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, lambda: "")
    except (ssl.SSLError, OSError, ValueError):
        words = "expected a certificate in PEM form and its private key without a password"
        there = "" if key else ", in this file or in client_key_file"
        raise SettingError(where, _shown(certificate), words + there) from None


def _shown(path: str) -> str:
    """The name of a file; a text that does not look like a path may be a key, and is masked."""
    return repr(path) if path.startswith(("/", "./", "../", "~/")) and len(path) <= 200 else MASK


def _can_be_named(path: str) -> bool:
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False
