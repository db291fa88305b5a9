"""Building images is asked for (make test-containers), not a side effect of running all tests."""

import os

import pytest


def pytest_collection_modifyitems(items):
    reason = None
    if not os.environ.get("RLKD_CONTAINERS"):
        reason = "builds an image: make test-containers"
    elif os.geteuid() != 0:
        reason = "needs root, for buildah --isolation chroot"
    for item in items:
        if reason and item.get_closest_marker("containers"):
            item.add_marker(pytest.mark.skip(reason=reason))
