"""Artifacts to extend: each is converted once a session, and copied for every test that changes it."""

import shutil

import pytest

from . import small_models


@pytest.fixture(scope="session")
def _converted(tmp_path_factory):
    return {}, tmp_path_factory.mktemp("extending")


@pytest.fixture
def artifact(rtx, _converted, tmp_path):
    """Makes the artifact of `small_models.convert` with these options, in a folder of the test."""
    known, folder = _converted

    def make(name="out", *, target="SM89", **options):
        backend = rtx if target is None else None
        targets = {} if target is None else {"targets": [target]}
        key = repr((target, sorted(options.items())))
        if key not in known:
            known[key] = small_models.convert(folder / str(len(known)), backend, **targets, **options)
        return shutil.copytree(known[key], tmp_path / name)

    return make
