"""The recorder without its patience: `python -m tests.impatient LOST_AFTER_S SWEEP_EVERY_S ASK_AGAIN_S record …`.

SILENCE_LIMIT_S in the environment is after how long without a heartbeat a connection is dead.
"""

import os
import sys

from recorder import cli, healer, record
from recorder.deribit import session

if __name__ == "__main__":
    record.TRADES_LOST_AFTER_S, healer.SWEEP_EVERY_S, healer.ASK_AGAIN_S = map(float, sys.argv[1:4])
    healer.ASK_AGAIN_MOST_S = healer.ASK_AGAIN_S
    session.SILENCE_LIMIT_S = float(os.environ.get("SILENCE_LIMIT_S", session.SILENCE_LIMIT_S))
    sys.exit(cli.main(sys.argv[4:]))
