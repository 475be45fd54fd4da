"""Ownership: who runs which entity, and running it. Imports `persistence` and `actors`."""
