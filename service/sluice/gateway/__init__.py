"""The path of a call: `Gateway.exchange(call)` is the straight line, `Served` a route with all that serves it."""

from sluice.gateway.exchanging import Exchanging, Gateway
from sluice.gateway.served import Served

__all__ = ["Exchanging", "Gateway", "Served"]
