"""The OpenAI wire format, sans-I/O: what clients may ask, what goes up, and what the answers say."""
