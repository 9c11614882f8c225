from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.backends import HARNESSES, Harness


@pytest.fixture(
    params=[
        pytest.param(
            kind,
            marks=[] if kind.quick else pytest.mark.slow,
            id=kind.__name__.removesuffix("Harness"),
        )
        for kind in HARNESSES
    ]
)
def harness(request: pytest.FixtureRequest) -> Iterator[Harness]:
    made: Harness = request.param()
    yield made
    made.discard()
