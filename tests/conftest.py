"""What all tests share."""

from hypothesis import HealthCheck, settings

# No deadline, since the time of a test on a shared runner says nothing about the code. Examples
# differ from run to run: few are drawn each time, and many runs see more of the space than one
# fixed sample would; a failing example is printed as a blob that reproduces it.
settings.register_profile(
    "zarrpipe",
    deadline=None,
    max_examples=25,
    derandomize=False,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("zarrpipe")
