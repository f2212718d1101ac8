"""Benchmarks: what `mesaopt bench` measures."""
