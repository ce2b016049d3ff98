"""Limits: what each tenant, key, person and route may use, reserved by estimate and settled exactly once by real usage."""
