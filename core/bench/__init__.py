"""Benchmarks of the loaded engine: what is asked of it, how it is measured, what came out."""
