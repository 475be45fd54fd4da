"""Durability: the store SPI, memory and SQLite stores, the log. Imports `actors` only."""
