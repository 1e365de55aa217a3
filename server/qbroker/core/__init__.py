"""The broker as a value machine: commands and time in, records and effects out."""
