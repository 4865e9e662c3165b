"""Hypothesis profiles: `ci`, quick and the same every time, and `nightly` with 100 times the draws.

Chosen with ``pytest --hypothesis-profile nightly``; `ci` is the default.
"""

from hypothesis import HealthCheck, settings

CI_EXAMPLES = 50

settings.register_profile(
    "ci",
    max_examples=CI_EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "nightly",
    max_examples=100 * CI_EXAMPLES,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ci")
