"""The recorder without its patience: `python -m tests.impatient LOST_AFTER_S SWEEP_EVERY_S ASK_AGAIN_S record …`."""

import sys

from recorder import cli, healer, record

if __name__ == "__main__":
    record.TRADES_LOST_AFTER_S, healer.SWEEP_EVERY_S, healer.ASK_AGAIN_S = map(float, sys.argv[1:4])
    healer.ASK_AGAIN_MOST_S = healer.ASK_AGAIN_S
    sys.exit(cli.main(sys.argv[4:]))
