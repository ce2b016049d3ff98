"""The whole file, and what must hold between its sections."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationInfo, model_validator

from sluice.config.base import Seconds, Section
from sluice.config.ledger import LedgerSettings
from sluice.config.limits import Limits, LimitsSettings
from sluice.config.queue import Replicas
from sluice.config.retrieval import Retrieval
from sluice.config.routes import Route
from sluice.config.server import Auth, ClientTimeouts, Server
from sluice.config.tracing import TracingSettings
from sluice.config.workers import Probes
from sluice.yaml_lines import Mistake, parse, read_text


class Settings(Section):
    """The whole file. Paths in it are taken from the folder that the file is in."""

    server: Server = Server()
    auth: Auth = Auth()
    routes: dict[str, Route] = Field(min_length=1)
    client_timeouts: ClientTimeouts = ClientTimeouts()
    probes: Probes = Probes()
    tracing: TracingSettings = TracingSettings()
    limits: LimitsSettings = LimitsSettings()
    ledger: LedgerSettings = LedgerSettings()
    replicas: Replicas = Replicas()
    retrieval: Retrieval = Retrieval()
    drain_grace_s: Annotated[float, Field(ge=0, le=600)] = 0
    drain_timeout_s: Seconds = 120

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        owner: dict[str, str] = {}
        for name, route in self.routes.items():
            for spelled in (name, *route.aliases, *route.named_adapters):
                if not spelled or len(spelled) > 256 or not spelled.isprintable():
                    raise Mistake(f"a model name is 1 to 256 printable characters, not {spelled!r}", "routes", name)
                if spelled in owner:
                    raise Mistake(f"the name {spelled!r} belongs to route {owner[spelled]!r} already", "routes", name)
                owner[spelled] = name
        return self

    @model_validator(mode="after")
    def _limits_name_routes(self) -> Self:
        tenants = dict(self.limits.tenants) | ({"default": self.limits.default} if self.limits.default else {})
        named: list[tuple[tuple[str, ...], dict[str, Limits]]] = [(("limits", "routes"), self.limits.routes)]
        named += [(("limits", "tenants", name, "routes"), tenant.routes) for name, tenant in tenants.items()]
        for key, routes in named:
            for name in routes:
                if name not in self.routes:
                    raise Mistake(f"there is no route {name!r} (there are {', '.join(self.routes)})", *key)
        return self

    @model_validator(mode="after")
    def _memory_counts_for_one(self) -> Self:
        if self.limits.store == "memory" and not self.limits.is_empty and self.replicas.are_several:
            raise Mistake(
                "memory counts for one gateway alone, and `replicas` says that there are more: use redis://HOST:PORT/0",
                *("limits", "store"),
            )
        return self

    @model_validator(mode="after")
    def _fallbacks_are_other_routes(self) -> Self:
        for name, route in self.routes.items():
            if route.fallback is not None and (route.fallback not in self.routes or route.fallback == name):
                raise Mistake(f"there is no other route {route.fallback!r}", "routes", name, "fallback")
        return self

    @model_validator(mode="after")
    def _open_means_loopback(self) -> Self:
        if self.auth.mode == "open" and not self.server.is_loopback and not self.auth.open_beyond_loopback:
            raise Mistake(
                f"open lets everybody in, and server.host {self.server.host} is not loopback; "
                "use mode: keys, or set auth.open_beyond_loopback: true if another layer keeps strangers out",
                *("auth", "mode"),
            )
        return self

    @model_validator(mode="after")
    def _retrieval_names_routes(self) -> Self:
        on_call = self.retrieval.on_call
        named: list[tuple[tuple[str, ...], str | None]] = [(("embedding_route",), self.retrieval.embedding_route)]
        named += [(("on_call", name), getattr(on_call, name)) for name in ("rerank_route", "rewrite_route")]
        for key, route in named:
            if route is not None and route not in self.routes:
                raise Mistake(f"there is no route {route!r}", "retrieval", *key)
        return self

    @model_validator(mode="after")
    def _secrets_are_there(self, info: ValidationInfo) -> Self:
        environment = (info.context or {}).get("environment")
        if environment is None:
            return self
        named: list[tuple[tuple[str, ...], str | None]] = [
            (("routes", name, "workers", "api_key_env"), r.workers.api_key_env) for name, r in self.routes.items()
        ]
        named += [(("retrieval", "retrievers", n, "api_key_env"), r.api_key_env) for n, r in self.retrieval.retrievers.items()]
        named += [(("server", "secret_env"), self.server.secret_env), (("retrieval", "token_env"), self.retrieval.token_env)]
        named.append((("limits", "store_password_env"), self.limits.store_password_env))
        for key, variable in named:
            if variable is not None and not environment.get(variable):
                raise Mistake(f"the environment variable {variable} is not set", *key)
        return self

    @model_validator(mode="after")
    def _salts_have_a_secret(self) -> Self:
        for name, route in self.routes.items():
            if route.cache_salt != "none" and self.server.secret_env is None:
                raise Mistake(
                    "salts are made with server.secret_env, which is not set: with a secret of its own, each replica and "
                    "each start would find the workers' caches empty",
                    *("routes", name, "cache_salt"),
                )
        return self

    def resolved(self, folder: Path) -> Settings:
        """The same settings with relative paths made absolute from `folder`."""
        auth = self.auth.model_copy(update={"keys_file": folder / self.auth.keys_file})
        routes = {}
        for name, route in self.routes.items():
            routes[name] = route.model_copy(
                update={"workers": route.workers.resolved(folder), "served_model": route.served_model or name}
            )
        kept_in = self.ledger.folder
        ledger = self.ledger.model_copy(update={"folder": folder / kept_in if kept_in else None})
        retrieval = self.retrieval.resolved(folder)
        return self.model_copy(update={"auth": auth, "routes": routes, "retrieval": retrieval, "ledger": ledger})


def load(path: Path, environment: Mapping[str, str] | None = os.environ) -> Settings:
    """The settings of the file at `path`; raises `ConfigError` with a line for each mistake.

    Without an environment, the variables that the file names are not asked for.
    """
    settings = parse(path, read_text(path), Settings, {"environment": environment})
    return settings.resolved(path.resolve().parent)
