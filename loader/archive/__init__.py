"""The Parquet archive: one set of parts per stream and UTC day, each read back before its manifest says it exists."""
