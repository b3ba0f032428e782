"""The version, which anything below the top of the package may ask for without importing it all."""

from functools import cache

__version__ = "0.1.0"


@cache
def installed(package: str) -> str | None:
    """The version of another package; None where it is not installed. It is looked up once: that reads files."""
    # Itself half of what importing this would take.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
