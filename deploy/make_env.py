"""Makes .env out of .env.example, with random passwords and this user's ids; never touches one that is there."""

import os
import re
import secrets
import sys
from pathlib import Path


def filled(example: str, values: dict[str, str]) -> str:
    """Return the text of .env.example with values in place of what it shows, commented out or not. Pure."""
    for name, value in values.items():
        example, count = re.subn(rf"^#?{name}=.*$", f"{name}={value}", example, flags=re.MULTILINE)
        assert count == 1, f"{name} is not in .env.example once"
    return example


def main() -> int:
    """Write .env beside .env.example, for its owner alone."""
    root = Path(__file__).resolve().parent.parent
    values = {"DB_PASSWORD": secrets.token_hex(16), "GRAFANA_PASSWORD": secrets.token_hex(16)}
    if os.getuid():  # root's containers run as 1000:1000, too
        values["CONTAINER_USER"] = f"{os.getuid()}:{os.getgid()}"
    try:
        fd = os.open(root / ".env", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        sys.stderr.write(".env is there already, and stays as it is\n")
        return 0
    with os.fdopen(fd, "w") as file:
        file.write(filled((root / ".env.example").read_text(), values))
    sys.stderr.write(f".env is made: {', '.join(values)} are chosen\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
