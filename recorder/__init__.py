"""Records what an exchange shows once: Deribit ticks into durable, checked Arrow segments."""
