"""A Deribit to record when there is none: a seeded market or a captured file behind Deribit's own protocol."""
