"""May a call start now, wait, or be shed: one bounded, fair queue a route, so that the engines' own stay short.

`fair_queue` says who is next, `window` how many may be at a worker, `drain` how fast it goes, `route` puts them together.
"""
