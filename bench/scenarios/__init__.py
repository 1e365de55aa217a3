"""One question a file. Each has `measure(arena)`, which answers with named figures."""
