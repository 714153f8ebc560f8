"""Sockets, HTTP, access, limits, metrics and logs: what a request passes before it is read."""
