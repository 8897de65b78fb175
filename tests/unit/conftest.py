"""How property tests run: as long as they take on whatever machine it is."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# How fast examples are made and tried says how busy the machine is.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")
