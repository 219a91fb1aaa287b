"""The recorder with its hour compressed: `python -m tests.fast_hours SECONDS record …` ranks anew so often."""

import sys

from recorder import cli, watchlist

if __name__ == "__main__":
    watchlist.RANK_EVERY_S = float(sys.argv[1])
    sys.exit(cli.main(sys.argv[2:]))
