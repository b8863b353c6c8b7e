"""transformers' own test classes, of the installed version. Its wheel has no tests; its source distribution has them.

    def test_…(request):  # marked slow: the first one downloads 11 MB from PyPI, and pytest's cache keeps the tests
        common = common_tests("test_processing_common", request.config.cache)

        class Case(common.ProcessorTesterMixin, unittest.TestCase): …

        assert failures(Case) == {}

The distribution holds tests/*.py, but not what lies in folders below it. `STAND_INS` are for what they need of it.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import unittest
from importlib import import_module
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
import transformers

IMAGE = Path(__file__).parent.parent / "examples" / "photographs" / "astronaut.jpg"
PACKAGE = "tests_of_transformers"
STAND_INS = {  # module → what is taken from it
    "fetch_hub_objects_for_ci": {"url_to_local_path": lambda url: str(IMAGE)},
    f"{PACKAGE}.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    f"{PACKAGE}.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
}


def common_tests(name: str, cache: pytest.Cache) -> ModuleType:
    """The module tests/`name`.py of transformers. Skips the test where it cannot be had, with the reason."""
    pytest.importorskip("parameterized", reason="transformers' tests need pip install parameterized")
    package = ModuleType(PACKAGE)
    package.__path__ = [str(source_tests(cache))]
    sys.modules.setdefault(PACKAGE, package)
    for module, names in STAND_INS.items():
        sys.modules.setdefault(module, ModuleType(module)).__dict__.update(names)
        parent = module.rpartition(".")[0]
        if parent:
            sys.modules.setdefault(parent, ModuleType(parent))
    # One of them would import transformers once more, from the distribution; and their markers are not in our list.
    once = patch("transformers.utils.direct_transformers_import", lambda path: transformers)
    with once, patch.object(pytest.mark, "_config", None):
        return import_module(f"{PACKAGE}.{name}")


def source_tests(cache: pytest.Cache) -> Path:
    """The folder tests/ of the source distribution: of pytest's cache, or downloaded into it."""
    folder = cache.mkdir(f"transformers-{transformers.__version__}")
    if (folder / "tests").is_dir():
        return folder / "tests"
    name = f"transformers=={transformers.__version__}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", name, "--dest"]
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        run = subprocess.run([*command, temporary], capture_output=True, text=True, timeout=600)
        if run.returncode:
            pytest.skip(f"the source distribution of {name} could not be downloaded: {run.stderr.strip()[-300:]}")
        (archive,) = Path(temporary).glob("*.tar.gz")
        with tarfile.open(archive) as opened:
            opened.extractall(temporary, [m for m in opened if "/tests/" in m.name], filter="data")
        (found,) = Path(temporary).glob("*/tests")
        try:
            os.rename(found, folder / "tests")
        except OSError:  # another process was faster
            shutil.rmtree(found)
    return folder / "tests"


def failures(case: type[unittest.TestCase]) -> dict[str, str]:
    """Run all tests of `case`: the names of those that fail, each with the last line of its error."""
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    print(f"{case.__name__}: {result.testsRun} run, of them {len(result.skipped)} skipped by themselves")
    found = {}
    for test, report in result.failures + result.errors:
        test = getattr(test, "test_case", test)  # of a subtest
        found[getattr(test, "_testMethodName", test.id())] = report.strip().splitlines()[-1]
        print(report)
    return found
