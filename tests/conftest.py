"""What holds for every test: property tests draw the same examples in each run, and slow machines are no failures."""

from hypothesis import settings

settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")
