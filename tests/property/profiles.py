"""How long hypothesis looks: HYPOTHESIS_EFFORT=long for a long look, =short for a glance."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

_SHARE = {"long": 50, "short": 0.2}.get(os.environ.get("HYPOTHESIS_EFFORT", ""), 1)


def moderate(examples: int) -> settings:
    """Settings for a test that looks at so many examples; at 50 times as many, at a fifth."""
    return settings(
        max_examples=max(1, round(examples * _SHARE)),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[p for p in Phase if p != Phase.explain],
    )
