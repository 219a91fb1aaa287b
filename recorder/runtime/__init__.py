"""What every program here needs: settings, exit codes, errors, logging, signals, and DATA_DIR."""
