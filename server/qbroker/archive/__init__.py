"""Settled tasks in SQLite: written by a process of their own, read by the broker's threads."""
