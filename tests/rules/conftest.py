"""Hypothesis settings for a noisy machine: slow examples are not failures."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("steady", deadline=None)
settings.load_profile("steady")
