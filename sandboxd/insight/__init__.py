"""Insight into the machine and the daemon: `doctor` checks the machine, `metrics` counts what the daemon does."""
