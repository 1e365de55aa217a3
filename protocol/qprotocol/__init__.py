"""The vocabulary of qbroker: frames, messages, errors, options. Pure values, no I/O."""
