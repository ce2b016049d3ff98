"""Retrieval: the protocol of retrievers, the embedded engine behind it, and its process."""
