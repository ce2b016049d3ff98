"""Traces of calls: what the path of a call knows of them (`base`), and OpenTelemetry behind it (`otlp`), loaded at need."""
