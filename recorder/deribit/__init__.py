"""All that knows Deribit: its messages, one session, the order book, the universe of instruments."""
