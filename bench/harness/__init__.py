"""The machinery of the bench: processes, the two sides, the targets and the table."""
