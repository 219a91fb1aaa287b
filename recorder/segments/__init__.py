"""The segment format: Arrow IPC files whose every byte is under a checksum (docs/format.md)."""
