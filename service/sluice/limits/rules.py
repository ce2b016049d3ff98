"""Whom a call counts for: the limits of the configuration and of the keys file, as subjects for a store."""

from __future__ import annotations

from dataclasses import replace

from sluice.config import Limits, LimitsSettings, TenantLimits
from sluice.limits.base import Subject
from sluice.types import Call, Tenant


class Rules:
    """Finds the subjects of a call. What it has found for a key and a route is kept until the key's entry changes."""

    def __init__(self, settings: LimitsSettings) -> None:
        self._settings = settings
        self._plans: dict[tuple[str, str, bool], tuple[Tenant, tuple[Subject, ...]]] = {}

    def subjects(self, call: Call) -> tuple[Subject, ...]:
        """Those with limits: tenant, tenant on the route, key, route, person; none where nothing is limited.

        What the gateway asks on behalf of a call costs tokens, and is neither a request nor in need of a place of its own.
        """
        tenant = call.tenant
        found = self._plans.get((tenant.key_id, call.route, call.is_child))
        if found is None or found[0] is not tenant:
            subjects = self._find(tenant, call.route)
            if call.is_child:
                only_tokens = [replace(subject, rpm=0, concurrency=0) for subject in subjects]
                subjects = tuple([subject for subject in only_tokens if subject.is_limited])
            found = self._plans[tenant.key_id, call.route, call.is_child] = tenant, subjects
        if call.user and (per_user := self._of(tenant).per_user) is not None:
            return (*found[1], self._person(tenant, call.user, per_user))
        return found[1]

    def _of(self, tenant: Tenant) -> TenantLimits:
        return self._settings.tenants.get(tenant.name) or self._settings.default or TenantLimits()

    def _find(self, tenant: Tenant, route: str) -> tuple[Subject, ...]:
        settings, of_tenant = self._settings, self._of(tenant)
        name, fail = tenant.name, of_tenant.fail or settings.fail
        subjects = [
            Subject.of(f"tenant:{name}", f"tenant {name}", of_tenant, fail),
            Subject.of(f"key:{tenant.key_id}", f"key {tenant.key_id}", _of_key(tenant, of_tenant.per_key), fail),
        ]
        if (there := of_tenant.routes.get(route)) is not None:
            subjects.insert(1, Subject.of(f"tenant:{name}:route:{route}", f"tenant {name} on {route}", there, fail))
        if (everybody := settings.routes.get(route)) is not None:
            subjects.append(Subject.of(f"route:{route}", f"route {route}", everybody, settings.fail))
        return tuple([subject for subject in subjects if subject.is_limited])

    def _person(self, tenant: Tenant, user: str, limits: Limits) -> Subject:
        fail = self._of(tenant).fail or self._settings.fail
        return Subject.of(f"tenant:{tenant.name}:user:{user}", "this user", limits, fail)


def _of_key(tenant: Tenant, per_key: Limits | None) -> Limits:
    """A key's own limits stand in the place of what its tenant gives each key."""
    own = {name: value for name in ("rpm", "tpm", "concurrency") if (value := getattr(tenant, name)) is not None}
    return (per_key or Limits()).model_copy(update=own)
