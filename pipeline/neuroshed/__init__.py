"""neuroshed: neurons from petascale electron microscopy, the same whatever the chunking."""

__version__ = "0.1.0"
