"""Brings the segments of a tape into a database and an archive, each exactly once; only prune takes from the tape."""
