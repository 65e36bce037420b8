"""Django's tests of cache backends, run on `ReplidictCache`: `python -m tests.django_suite FOLDER PICKLE DIRECTORY`.

FOLDER has the tests of a release of Django, and PICKLE is "pickle" or "plain".
"""

from __future__ import annotations

import json
import sys
import unittest
from typing import Any


def main(folder: str, pickle: str, directory: str) -> None:
    sys.path.insert(0, folder)
    import django
    from django.conf import settings

    backend = "replidict.contrib.django.ReplidictCache"
    base = {"OPTIONS": {"pickle": pickle == "pickle"}}
    settings.configure(
        CACHES={"default": {"BACKEND": backend, "LOCATION": directory, **base}},
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        INSTALLED_APPS=["cache"],
        SECRET_KEY="of the tests",
        USE_TZ=False,
    )
    django.setup()
    from cache.tests import BaseCacheTests, caches_setting_for_tests  # type: ignore[import-not-found]
    from django.test import TestCase
    from django.test.runner import DiscoverRunner
    from django.test.utils import override_settings

    cases: Any = override_settings(CACHES=caches_setting_for_tests(BACKEND=backend, LOCATION=directory, base=base))(
        type("ReplidictCacheTests", (BaseCacheTests, TestCase), {})
    )
    runner = DiscoverRunner(verbosity=0, interactive=False)
    runner.setup_test_environment()
    databases = runner.setup_databases()
    result: Any = runner.run_suite(unittest.defaultTestLoader.loadTestsFromTestCase(cases))
    runner.teardown_databases(databases)
    failed = sorted({_name(test) for test, _ in [*result.failures, *result.errors]})
    skipped = [_name(test) for test, _ in result.skipped]
    print(json.dumps({"run": result.testsRun, "failed": failed, "skipped": skipped}))


def _name(test: Any) -> str:
    return str(getattr(test, "test_case", test)._testMethodName)


if __name__ == "__main__":
    main(*sys.argv[1:])
