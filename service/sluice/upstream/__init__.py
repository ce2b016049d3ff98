"""HTTP/1.1 to one worker, on the hot path: connections that are kept, and what comes back on them."""
