"""Ollama's API in front of llama-server: `kloros-llm-gateway`."""
