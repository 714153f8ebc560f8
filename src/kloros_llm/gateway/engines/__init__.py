"""llama-server: one of them over HTTP, all of them with their states, retries and fall-backs."""
