"""Tables made by the tests are kept in a folder of this run, not in the user's cache."""

import os
import shutil
import tempfile

CACHE = tempfile.mkdtemp(prefix="m3dec-tests-")
os.environ["HF_DATASETS_CACHE"] = CACHE  # before 🤗 Datasets is imported, and for child processes


def pytest_unconfigure():
    shutil.rmtree(CACHE, ignore_errors=True)
