"""``GET /v1/models``, in the platform's shape and in Codex's (protocol.md §7, §10.82).

The list has the models that a client can use: the names and aliases in the configuration, and the
upstreams' models that match its patterns, as far as the client's key allows them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b

import msgspec

from gateway.protocol.errors import ApiError
from gateway.routing.account import Account
from gateway.routing.health import AccountState
from gateway.routing.model_catalog import AccountModels, ModelCatalog
from gateway.routing.router import AccountPool
from gateway.server.http_request import ClientRequest

#: Whether a tenant's key allows a model.
MayUse = Callable[[str, str], bool]

_PATTERN = re.compile(r"[*?\[]")
_OUT_OF_SERVICE = frozenset({AccountState.DISABLED, AccountState.DRAINING})
_MAX_VERSION = 50


class _Model(msgspec.Struct):
    """A model that no upstream describes, in the platform's shape."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "responses-gateway"


class Models:
    """The handlers of ``/v1/models``.

    :param may_use: whether a tenant's key allows a model.
    """

    def __init__(self, pool: AccountPool, catalogues: ModelCatalog, may_use: MayUse) -> None:
        self._pool = pool
        self._catalogues = catalogues
        self._may_use = may_use

    def index(self, request: ClientRequest, tenant: str) -> None:
        """``GET /models``; with ``client_version`` in Codex's shape."""
        version = request.query.get("client_version", [None])[-1]
        if version is None:
            self._listed(tenant, lambda models: _answer(request, _platform_list(models), None))
        else:
            self._catalogue(
                version[:_MAX_VERSION],
                tenant,
                lambda models, etag: _answer(request, {"models": [*models.values()]}, etag),
            )

    def retrieve(self, request: ClientRequest, tenant: str) -> None:
        """``GET /models/{model}``."""
        name = request.parameters["model"]

        def listed(models: Mapping[str, msgspec.Raw]) -> None:
            if name in models:
                _answer(request, models[name], None)
            else:
                request.refuse(_unknown(name))

        self._listed(tenant, listed)

    def _listed(self, tenant: str, done: Callable[[Mapping[str, msgspec.Raw]], None]) -> None:
        services = self._services()

        def merge(catalogues: Sequence[AccountModels | None]) -> None:
            models: dict[str, msgspec.Raw] = {}
            for accounts, catalogue in zip(services, catalogues, strict=True):
                offered = catalogue.models if catalogue is not None else {}
                for account in accounts:
                    for name in _names_of(account, offered):
                        listed = offered.get(name)
                        entry = None if listed is None else listed.platform
                        models.setdefault(name, entry or _undescribed(name))
            may_use = self._may_use
            done({name: raw for name, raw in models.items() if may_use(tenant, name)})

        self._gather(services, None, merge)

    def _catalogue(
        self,
        version: str,
        tenant: str,
        done: Callable[[Mapping[str, msgspec.Raw], str | None], None],
    ) -> None:
        services = self._services()

        def merge(catalogues: Sequence[AccountModels | None]) -> None:
            models: dict[str, msgspec.Raw] = {}
            etags: list[str | None] = []
            for accounts, catalogue in zip(services, catalogues, strict=True):
                offered = {} if catalogue is None else _in_codex_shape(catalogue)
                if catalogue is None or not offered:
                    continue
                etags.append(catalogue.etag)
                for name, raw in offered.items():
                    served = any(each.serves(name) for each in accounts)
                    if served and self._may_use(tenant, name):
                        models.setdefault(name, raw)
            done(models, etags[0] if len(etags) == 1 else None)

        self._gather(services, version, merge)

    def _services(self) -> Sequence[Sequence[Account]]:
        """The accounts in service, by their upstream."""
        services: dict[str, list[Account]] = {}
        for account in self._pool.accounts:
            if account.health.state not in _OUT_OF_SERVICE:
                services.setdefault(account.settings.base_url, []).append(account)
        return list(services.values())

    def _gather(
        self,
        services: Sequence[Sequence[Account]],
        version: str | None,
        done: Callable[[Sequence[AccountModels | None]], None],
    ) -> None:
        """Ask all services at once, except those whose model names are all configured."""
        found: list[AccountModels | None] = [None] * len(services)
        missing = len(services)

        def found_at(at: int, catalogue: AccountModels | None) -> None:
            nonlocal missing
            found[at] = catalogue
            missing -= 1
            if missing == 0:
                done(found)

        if not services:
            done(found)
        for at, accounts in enumerate(services):
            if version is None and not any(_has_patterns(account) for account in accounts):
                found_at(at, None)
            else:
                self._catalogues.list_models(accounts, version, lambda c, at=at: found_at(at, c))  # type: ignore[misc]


def _names_of(account: Account, offered: Iterable[str]) -> Iterable[str]:
    """The names by which clients can use the models of ``account``."""
    settings = account.settings
    yield from (model for model in settings.models if not _PATTERN.search(model))
    yield from settings.aliases
    yield from (name for name in offered if account.serves(name))


def _has_patterns(account: Account) -> bool:
    return any(_PATTERN.search(model) for model in account.settings.models)


def _in_codex_shape(catalogue: AccountModels) -> dict[str, msgspec.Raw]:
    """The models that an upstream described in Codex's shape.

    Codex rejects a whole list for one entry that it cannot read, so none is invented.
    """
    return {name: each.codex for name, each in catalogue.models.items() if each.codex is not None}


def _undescribed(name: str) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(_Model(name)))


def _platform_list(models: Mapping[str, msgspec.Raw]) -> dict[str, object]:
    return {"object": "list", "data": list(models.values())}


def _answer(request: ClientRequest, body: object, etag: str | None) -> None:
    """Answer with JSON, or with 304 if the client has it already (RFC 9110 §13.1.2)."""
    encoded = msgspec.json.encode(body)
    tag = etag or f'"{blake2b(encoded, digest_size=12).hexdigest()}"'
    if _has(request.headers.get("if-none-match", ""), tag):
        request.start(304, {"etag": tag})
        request.finish()
        return
    request.answer(200, encoded, {"content-type": "application/json", "etag": tag})


def _has(known: str, tag: str) -> bool:
    """Compared weakly (RFC 9110 §8.8.3.2)."""
    tags = {each.strip().removeprefix("W/") for each in known.split(",")}
    return "*" in tags or tag.removeprefix("W/") in tags


def _unknown(name: str) -> ApiError:
    return ApiError(
        404,
        "invalid_request_error",
        f"The model '{name[:200]}' does not exist or you do not have access to it.",
        "model_not_found",
        "model",
    )
