"""Canvas: calls put together. A step is a call, a chain, a group or a chord; see steps.py.

steps.py     chain, group, chord as values            what an application writes
plan.py      a step --> messages and links            no ids, no bytes, no I/O
packing.py   a plan --> one atomic publish, handles
inputs.py    what a step is given --> arguments       at the worker
"""
