"""What all tests share: the ``--rewrite`` option and how hard Hypothesis tries."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

# Shared machines stall: a test that is slow once has not failed.
PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}

settings.register_profile("default", max_examples=100, **PATIENT)
settings.register_profile("ci", max_examples=30, derandomize=True, database=None, **PATIENT)
settings.register_profile("long", max_examples=5000, print_blob=True, **PATIENT)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite",
        action="store_true",
        help="write what happens now into the scenarios' transcripts; commit only what you meant",
    )
