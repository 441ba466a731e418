"""``run.json`` and ``report.html``."""
