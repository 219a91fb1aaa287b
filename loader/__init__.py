"""Brings the segments of a tape into a database, each exactly once; never changes the tape."""
