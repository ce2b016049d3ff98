"""A fleet of simulated vLLM workers in one process: engine model, wire, faults. See docs/simfleet.md."""
