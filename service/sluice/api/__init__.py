"""The HTTP endpoints: thin functions over the gateway."""
