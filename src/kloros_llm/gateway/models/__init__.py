"""Names and what they mean: models, personas, what clients create, pull and delete."""
