"""The ops room: how people and machines look at a broker. Looking does not change it.

metrics.py   the table of metrics, filled from statistics
health.py    is it well: one verdict, from what moved lately
http.py      /metrics and /health
journal.py   the broker's own lines, for people or for collectors
admin.py     a blocking connection for the command line
show.py      tables for people
overlay.py   a log's directory that can be opened without being touched
tables.py    the generated tables in README.md
"""
