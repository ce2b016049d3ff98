"""The HTTP server: uvicorn with a protocol of our own, which bounds what a client may do to us, and a pump for streams."""
