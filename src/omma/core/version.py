"""The version, which the package's metadata, `omma --version` and all files that omma writes name."""

__version__ = "0.1.0"
