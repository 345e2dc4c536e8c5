"""A headless Chromium for tests of pages; they are skipped where none is installed."""

import pytest

from tests.chromium import PROGRAMS, Browser, find_chromium


@pytest.fixture(scope="session")
def browser():
    if find_chromium() is None:
        pytest.skip(f"no Chromium is installed: none of {', '.join(PROGRAMS)} is on the PATH")
    with Browser() as found:
        yield found
