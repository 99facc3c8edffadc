"""Glyphs: characters of invented scripts, drawn by the package itself."""

from metalearn.tasks.glyphs.source import Glyphs, draw_world

__all__ = ["Glyphs", "draw_world"]
