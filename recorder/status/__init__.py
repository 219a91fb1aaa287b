"""How recorder, loader, and tape are doing now, told on a terminal, as text, or as JSON."""
