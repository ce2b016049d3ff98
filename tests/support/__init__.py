"""Helpers shared by the unit and the end-to-end tests: a scripted vLLM worker and hand-driven clients."""
