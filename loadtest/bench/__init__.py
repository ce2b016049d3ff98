"""What the gateway costs beside a bare relay: CPU a request and an event, memory a stream, delay. See `__main__`."""
