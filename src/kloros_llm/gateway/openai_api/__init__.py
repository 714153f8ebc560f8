"""/v1 of OpenAI and Anthropic, passed through with the names and errors that Ollama gives."""
