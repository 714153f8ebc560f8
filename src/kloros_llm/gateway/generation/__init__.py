"""From a conversation to pieces of an answer: prompts, truncation, thinking, tool calls."""
