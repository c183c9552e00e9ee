"""Engines behind one protocol (`core.engines.base`)."""
