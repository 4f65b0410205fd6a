"""Hypothesis on a noisy machine: what takes long is no failure."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("steady", deadline=None)
settings.load_profile("steady")
