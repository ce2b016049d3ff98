"""Start and supervise local vLLM processes, and fetch the models that `sluice up` shows when none is given."""
