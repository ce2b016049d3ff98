"""Ingestion: from an uploaded file to passages, in a process of its own."""
