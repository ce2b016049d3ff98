"""Locust users that speak OpenAI's protocol as people and apps do, and what is measured of them."""
