"""The embedded default journal: segment files in a directory.

    DIR/control                   identity, oldest sequence, known tail, closed properly?
    DIR/lock                      flock; says which process
    DIR/<first sequence>.seg      frames, behind one header block
    DIR/spare.tmp                 the next segment, preallocated
    DIR/snapshots/<name>.snap     snapshots, in the same frames

`frames`, `blocks`, `segment` and `control` are the format; `recovery` finds the tail or the
damage; `log` writes; `replay` reads; `backend` puts threads and the event loop around them;
`disk` is every system call, in one place.
"""

from journal.file.backend import FileJournal

__all__ = ["FileJournal"]
