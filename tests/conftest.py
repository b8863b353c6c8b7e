"""Two test processes share two cores, each with one thread; tables that tests make stay out of the user's cache."""

import os
import shutil
import tempfile

CACHE = tempfile.mkdtemp(prefix="m3dec-tests-")
os.environ["HF_DATASETS_CACHE"] = CACHE  # before 🤗 Datasets is imported, and for child processes
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is; two threads each would wait for one another


def pytest_unconfigure():
    shutil.rmtree(CACHE, ignore_errors=True)
