"""Render stems: by separation, or as noise for load tests."""
