"""Which ticktape this is, as it is written into segments and ledgers."""

from importlib import metadata


def version() -> str:
    """Return the version, for example `0.1.0`; `0+unknown` in a checkout that was never installed."""
    try:
        return metadata.version("ticktape")
    except metadata.PackageNotFoundError:
        return "0+unknown"


def software() -> str:
    """Return the name and version, for example `ticktape/0.1.0`."""
    return f"ticktape/{version()}"
