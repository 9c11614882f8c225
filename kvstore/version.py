"""Which etcd this behaves as."""

from __future__ import annotations

#: What Status, /version and the metrics report. kube-apiserver chooses its ways by it.
ETCD_VERSION = "3.7.0"
STORAGE_VERSION = "3.7.0"
