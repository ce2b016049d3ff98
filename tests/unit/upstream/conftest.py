"""These tests run on both event loops: uvloop is what serves, asyncio's own is what everything else is tested on."""

import asyncio

import uvloop


def pytest_asyncio_loop_factories():
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
