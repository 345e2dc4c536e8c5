"""From sample inputs to the optimization profiles of every segment."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from passes.model import Model
from rewriter.backends.base import Profile
from rewriter.errors import InvalidParameterError
from rewriter.planning import Plan
from rewriter.profiles import harvest, make_profiles, sample_feeds, static_profiles
from rewriter.source import Signature
