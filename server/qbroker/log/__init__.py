"""The log room: what the broker knows for certain, in order, on disk.

It stores bytes under positions and has never heard of a queue. LOG.md beside the
package is the specification; `format` has the same diagrams in code.

    log.py       the verbs: begin, commit, sync, read, replay, adopt, drop, close
    recovery.py  a directory becomes a log, or a sentence why not
    reader.py    a log as another process sees it
    cleaning.py  segments mostly dead, written anew under the same positions
    meta.py      what the directory says of itself
    manifest.py  which files make up a log, in memory and on disk
    active.py    the segment that is written to
    segment.py   one file, and what is known of it
    walk.py      through a segment, batch by batch, each verified
    lookup.py    one record or a block of batches, found and checked
    repair.py    a damaged log is cut, once what is lost has been told
    salvage.py   what is left of a batch in which bytes went bad
    statistics.py  what may be looked at of a log
    window.py    files as readers see them: buffered, kept open for a while
    batch.py     what is being collected, and how it becomes bytes
    index.py     which batch is where, 24 bytes for every 16 KiB
    marks.py     which keys are where in a large batch, 8 bytes for every 16 KiB
    settings.py, statistics.py    what may be chosen, what may be looked at
    format.py    the bytes
    disk.py      the only file that opens files
    errors.py    what can go wrong, each with what to do
"""
