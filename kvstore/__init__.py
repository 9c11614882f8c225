"""The server: everything of jotd but the journal and the partition table."""

import os

if os.environ.get("JOTD_PURE_PYTHON"):
    # Before any module is imported that there may be in two forms.
    from kvstore.runtime.sources import prefer_sources

    prefer_sources()
