"""Machines: Ray, sockets, processes, CLI and the Python API. Imports all the floors below."""
