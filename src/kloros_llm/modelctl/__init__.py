"""`modelctl`: the models of a host and what runs of them, from a command line."""
