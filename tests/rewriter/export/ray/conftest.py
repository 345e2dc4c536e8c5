import importlib.util
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("ray_models", Path(__file__).with_name("ray_models.py"))
_models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_models)


@pytest.fixture(scope="session")
def ray_models():
    return _models


@pytest.fixture
def rows(tmp_path):
    return _models.save_rows(tmp_path / "rows")


@pytest.fixture
def whole(tmp_path):
    return _models.save_whole(tmp_path / "whole")
