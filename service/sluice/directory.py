"""Which route a model's name leads to, and what the worker calls it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from sluice.config import Route
from sluice.errors import ModelNotFound
from sluice.types import Tenant
from sluice.wire.requests import Rules


@dataclass(frozen=True, slots=True)
class Target:
    """Where calls for one name go: the route, its rules, and the model's name on its workers."""

    route: str
    settings: Route
    rules: Rules
    served_model: str

    @property
    def adapter(self) -> str | None:
        """The LoRA adapter that the name stands for, if it is one."""
        return None if self.served_model == (self.settings.served_model or self.route) else self.served_model


class Directory:
    """Every name that a client may use: routes, their aliases and their adapters."""

    def __init__(self, routes: Mapping[str, Route]) -> None:
        self._targets: dict[str, Target] = {}
        for name, route in routes.items():
            rules = Rules.of(name, route)
            target = Target(name, route, rules, route.served_model or name)
            for spelled in (name, *route.aliases):
                self._targets[spelled] = target
            for adapter in route.named_adapters:
                self._targets[adapter] = Target(name, route, rules, adapter)
        self._routes = {name: self._targets[name] for name in routes}
        self._discovered: dict[str, Target] = {}  # adapters that workers report, which come and go

    def discover(self, route: str, adapters: Iterable[str]) -> None:
        """From now on these are the adapters that the workers of the route report. Configured names are never theirs, and of
        two routes that report one name it is the first one's as long as that does."""
        kept = {name: target for name, target in self._discovered.items() if target.route != route}
        for name in adapters:
            if name not in self._targets and name not in kept:
                kept[name] = replace(self._routes[route], served_model=name)
        self._discovered = kept

    def find(self, model: str, tenant: Tenant) -> Target:
        """Raises `ModelNotFound` for a name that does not exist and for one that this tenant may not use, alike."""
        target = self._targets.get(model) or self._discovered.get(model)
        if target is None or not tenant.may_use(target.route):
            raise ModelNotFound(model)
        return target

    def names(self, tenant: Tenant) -> dict[str, Target]:
        known = self._targets | self._discovered
        return {name: target for name, target in known.items() if tenant.may_use(target.route)}
