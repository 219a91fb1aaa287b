"""Fixtures that run the real programs as processes."""
