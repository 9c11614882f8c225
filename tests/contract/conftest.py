from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.backends import HARNESSES, Harness


@pytest.fixture(params=HARNESSES, ids=lambda kind: kind.__name__.removesuffix("Harness"))
def harness(request: pytest.FixtureRequest) -> Iterator[Harness]:
    made: Harness = request.param()
    yield made
    made.discard()
