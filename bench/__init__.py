"""Measuring bundles: speed, memory, quality and tasks, compared with other engines."""
