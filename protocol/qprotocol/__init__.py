"""The vocabulary of qbroker: frames, messages, errors, options. Pure values, no I/O."""

__version__ = "0.1.0"
