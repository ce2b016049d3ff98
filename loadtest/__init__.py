"""Load tests, simulations and benchmarks of the gateway. They see it as its users do: nothing here imports `sluice`."""
