"""Who is behind a request: its key's tenant, and the headers that may not leave that open."""

from __future__ import annotations

from sluice.errors import BadRequest, Forbidden
from sluice.keys import Door
from sluice.middleware import Visit
from sluice.types import Tenant

ONCE_ONLY = (b"host", b"content-length", b"content-type", b"authorization", b"x-api-key", b"transfer-encoding")


def check_repeated(headers: list[tuple[bytes, bytes]]) -> None:
    """Raises `BadRequest` for a header that stands there twice and that we and a proxy before us could read differently."""
    names = [name for name, _ in headers]
    for name in ONCE_ONLY:
        if names.count(name) > 1:
            raise BadRequest(f"The header {name.decode()} stands in the request more than once.")


def tenant_of(visit: Visit, door: Door) -> Tenant:
    """The tenant of the request's key, noted in the visit; raises what the door raises."""
    headers = visit.headers
    if len(headers) != len(visit.scope["headers"]):
        check_repeated(visit.scope["headers"])
    visit.tenant = door.resolve(
        headers.get(b"authorization"), headers.get(b"x-api-key"), address=visit.address, now=visit.started_at
    )
    return visit.tenant


def admin_of(visit: Visit, door: Door) -> Tenant:
    """The same, for what shows other tenants' doings; raises `Forbidden` for a key without the scope `admin`."""
    tenant = tenant_of(visit, door)
    if "admin" not in tenant.scopes:
        raise Forbidden("This needs a key with the scope admin (`sluice key new --scope admin`).")
    return tenant
