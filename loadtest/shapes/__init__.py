"""Loads that change over time, one a file: `locust -f loadtest/locustfile.py,loadtest/shapes/ramp.py`."""
