"""Atoll: durable entities on Ray."""
