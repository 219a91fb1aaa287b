"""A page about a tape: what it holds, what is missing, and what its ticks show; one file that opens offline."""
