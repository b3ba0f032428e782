"""The version, which anything below the top of the package may ask for without importing it all."""

__version__ = "0.1.0"
