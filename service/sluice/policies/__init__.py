"""Routing policies: a name table, one file a policy. Any other name in the configuration is an import string."""

from __future__ import annotations

from typing import Any

from sluice.loading import load

POLICIES = {
    "round_robin": "sluice.policies.round_robin:RoundRobin",
    "least_inflight": "sluice.policies.least_inflight:LeastInflight",
    "prefix_affinity": "sluice.policies.prefix_affinity:PrefixAffinity",
    "session_affinity": "sluice.policies.session_affinity:SessionAffinity",
}


def policy_class(route: str, policy: str) -> Any:
    """What makes the policy that a route's configuration names; raises `ConfigError` where it cannot be loaded."""
    return load(POLICIES.get(policy, policy), setting=f"routes.{route}.policy")
