"""Settings for the whole suite."""

from hypothesis import settings

settings.register_profile("pocketport", deadline=None, derandomize=True)  # no timed tests; the same examples every time
settings.load_profile("pocketport")
