"""Faults made to order, and who judges what they did: shares no code with the product's readers."""
