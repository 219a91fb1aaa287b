"""The recorder's own errors (the common ones are in recorder.runtime.errors).

TicktapeError
└── ExchangeNotReached   exit 3   within --connect-timeout
"""

from recorder.runtime.errors import TicktapeError
from recorder.runtime.exit_codes import ExitCode


class ExchangeNotReached(TicktapeError):
    """The exchange was not reached within --connect-timeout."""

    exit_code = ExitCode.NO_EXCHANGE
