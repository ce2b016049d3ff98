"""Sluice: an OpenAI-compatible gateway for vLLM."""

__version__ = "0.1.0"
