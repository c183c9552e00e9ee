"""Waiting for something that another thread or process does."""

import time


def until(condition, timeout_s=20.0):
    """Wait for `condition` to give something true, and return it."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        result = condition()
        if result:
            return result
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")
