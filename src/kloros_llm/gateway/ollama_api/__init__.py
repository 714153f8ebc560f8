"""Ollama's routes under /api: what clients send and get, as Go reads and writes it."""
