"""How long hypothesis looks: JOTD_HYPOTHESIS_PROFILE=long for a long look."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

LONG = os.environ.get("JOTD_HYPOTHESIS_PROFILE") == "long"


def moderate(examples: int) -> settings:
    """Settings for a test that looks at so many examples, or at fifty times as many."""
    return settings(
        max_examples=examples * 50 if LONG else examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[p for p in Phase if p != Phase.explain],
    )
