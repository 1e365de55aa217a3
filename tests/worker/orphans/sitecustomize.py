"""For a worker's processes, which import this at their start: a system like macOS."""

from qworker import lineage

lineage.AVAILABLE = False
