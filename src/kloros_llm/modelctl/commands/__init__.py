"""One module a command: `run(arguments)` does it and returns the exit status."""
