"""How long hypothesis looks: HYPOTHESIS_EFFORT=long for a long look, =short for a glance."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

_EFFORT = os.environ.get("HYPOTHESIS_EFFORT", "")
LONG = _EFFORT == "long"


def scaled(examples: int, long: int) -> int:
    """So many examples; `long` times as many at a long look, a fifth at a glance."""
    return max(1, round(examples * {"long": long, "short": 0.2}.get(_EFFORT, 1)))


def moderate(examples: int) -> settings:
    """Settings for a test that looks at so many examples; at 50 times as many, at a fifth."""
    return settings(
        max_examples=scaled(examples, long=50),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[p for p in Phase if p != Phase.explain],
    )
