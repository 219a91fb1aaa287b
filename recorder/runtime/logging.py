"""Logging to stderr: a console form on a terminal, JSON elsewhere; stable event names, never a secret.

An event is a dotted name (`segment.sealed`) with its facts as fields. Nothing is logged per message.
"""

import logging
import sys

import structlog

Logger = structlog.stdlib.BoundLogger


def configure(*, level: str, form: str) -> None:
    """Set up structlog and route the libraries' stdlib loggers through it.

    Args:
        level: DEBUG, INFO, WARNING or ERROR.
        form: `console`, `json`, or `auto` (console if stderr is a terminal).
    """
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if console else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            *shared,
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level)),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # Our session logs each attempt once, in its own words; the library would log every handshake.
    logging.getLogger("websockets").setLevel(logging.WARNING)


def get_logger(name: str) -> Logger:
    """Return the logger of a part, for example `recorder`."""
    logger: Logger = structlog.stdlib.get_logger(name)
    return logger
