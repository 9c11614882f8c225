"""The HTTP side: health, version and metrics, for probes, dashboards and people."""
