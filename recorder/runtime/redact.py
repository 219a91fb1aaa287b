"""What is shown of a URL that may hold a secret: the one way to do it, in logs, files, and messages. Pure."""

import re

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_PASSWORD_KEYWORD = re.compile(r"password\s*=", re.IGNORECASE)  # in `host=… password=…`
# A number before a slash is a port. All else between a colon and an @ is a password, its own slashes included.
_URL_WITH_PASSWORD = re.compile(r"[a-z][a-z0-9+.-]*://[^/@:]*:(?!\d+[,/?#]).+@", re.IGNORECASE)
_MORE = re.compile(r"[?#]")
_NO_PORT = re.compile(r"^([^/:\[]*):(?=[^/]*[^/\d])[^/]*")
_URLS = re.compile(_SCHEME.pattern + r"\S+", re.IGNORECASE)


def redact(value: str) -> str:
    """Mask user, password, and query of a URL, and all of a connection string from its password on.

    A secret whose / @ ? or # is not percent-encoded looks like another part of the URL: rather more is masked then,
    up to all but the scheme. What holds no secret is returned as it is.
    """
    if keyword := _PASSWORD_KEYWORD.search(value):
        value = value[: keyword.start()] + "password=***"
    scheme = found[0] if (found := _SCHEME.match(value)) else ""
    rest = value.removeprefix(scheme)
    end = found.start() if (found := _MORE.search(rest)) else len(rest)
    if "@" in rest[end:]:
        return f"{scheme}***"
    _, at, place = rest[:end].rpartition("@")
    if scheme:
        place = _NO_PORT.sub(r"\1:***", place)
    more = f"{rest[end]}***" if rest[end + 1 :] else rest[end:]
    return scheme + ("***@" if at else "") + place + more


def redact_urls(text: str) -> str:
    """Mask what is secret in each URL of a sentence, for example of a library's error."""
    return _URLS.sub(lambda url: redact(url[0]), text)


def has_password(value: str) -> bool:
    """Whether a URL or connection string has a password in it."""
    return bool(_URL_WITH_PASSWORD.match(value) or _PASSWORD_KEYWORD.search(value))
