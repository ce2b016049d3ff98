"""Fairness and overload: what light tenants notice of a heavy one, and what a gateway does with three times its load."""
