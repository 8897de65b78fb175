"""Seeing and checking: what a machine lacks for pods, what the daemon counts."""
