"""PostgreSQL and TimescaleDB: how one is reached, what kind it is, its schema, its ledger, and how rows get in."""
