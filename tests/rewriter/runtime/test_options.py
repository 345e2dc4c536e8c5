"""Options of a converted function: what is allowed, what goes together, what the artifact adds."""

import dataclasses
import re
import types
from pathlib import Path

import numpy as np
import pytest

from rewriter.errors import InvalidParameterError
from rewriter.runtime.options import RuntimeOptions, stream_handle


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"provider": "gpu"}, "provider must be one of auto, cpu, cuda, not 'gpu'"),
        ({"execution": "fast"}, "execution must be one of auto, native, emulate, not 'fast'"),
        ({"strict": 1}, "strict must be True or False, not 1"),
        ({"cuda_graph": None}, "cuda_graph must be True or False, not None"),
        ({"wait_for_builds": "no"}, "wait_for_builds must be True or False, not 'no'"),
        ({"device": -1}, "device must be an integer of at least 0, not -1"),
        ({"device": True}, "device must be an integer of at least 0, not True"),
        ({"device": "cuda:0"}, "device must be an integer of at least 0, not 'cuda:0'"),
        ({"threads": 0}, "threads must be an integer of at least 1, not 0"),
        ({"threads": "all"}, "threads must be an integer of at least 1, not 'all'"),
        ({"allow_build_at_runtime": 0}, "allow_build_at_runtime must be True or False, not 0"),
        ({"maximum_cached_engines": 0}, "maximum_cached_engines must be an integer of at least 1, not 0"),
        ({"maximum_cached_engines": 1.5}, "maximum_cached_engines must be an integer of at least 1, not 1.5"),
        ({"cache_full": "drop"}, "cache_full must be one of native, evict, not 'drop'"),
        ({"engine_cache_dir": 3}, "engine_cache_dir must be the path of a folder, not 3"),
        ({"engine_cache_dir": ""}, "engine_cache_dir must be the path of a folder, not ''"),
        (
            {"engine_cache_dir": "cache", "engine_cache_max_bytes": 0},
            "engine_cache_max_bytes must be an integer of at least 1, not 0",
        ),
        ({"engine_cache_max_bytes": 9}, "engine_cache_max_bytes needs engine_cache_dir"),
        ({"stream": "0x1"}, "stream must be the handle of a CUDA stream, or an object with"),
        ({"stream": -1}, "stream must be the handle"),
        ({"stream": True}, "stream must be the handle"),
        ({"execution": "native", "strict": True}, "execution='native' uses no engines: leave strict=True out"),
        ({"execution": "emulate", "provider": "cuda"}, "leave provider='cuda' out"),
        ({"provider": "cpu", "stream": 7}, "provider='cpu' runs on the CPU, which has no CUDA streams"),
        ({"execution": "native", "stream": 7}, "execution='native' runs on the CPU, which has no CUDA streams"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(InvalidParameterError, match=re.escape(message)):
        RuntimeOptions(**options)


def test_defaults_and_immutability():
    options = RuntimeOptions()
    assert (options.provider, options.execution, options.cuda_graph, options.stream) == ("auto", "auto", True, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.strict = True


def test_numbers_of_numpy_and_paths_are_plain_values():
    options = RuntimeOptions(device=np.int64(1), maximum_cached_engines=np.int32(3), engine_cache_dir="cache")
    assert (type(options.device), type(options.maximum_cached_engines)) == (int, int)
    assert options.engine_cache_dir == Path("cache")


@pytest.mark.parametrize(
    ("stream", "handle"),
    [
        (None, None),
        (0, 0),
        (np.uint64(94), 94),
        (types.SimpleNamespace(__cuda_stream__=lambda: (0, 11)), 11),
        (types.SimpleNamespace(__cuda_stream__=(0, 12)), 12),
        (types.SimpleNamespace(cuda_stream=13), 13),
        (types.SimpleNamespace(ptr=14), 14),
    ],
)
def test_streams_of_other_libraries(stream, handle):
    assert stream_handle(stream) == handle
    options = RuntimeOptions(stream=stream)
    assert options.stream == handle
    assert options.stream_owner is stream  # the handle is good for as long as its object lives


def test_a_copy_keeps_the_owner_of_the_stream():
    stream = types.SimpleNamespace(ptr=14)
    copy = dataclasses.replace(RuntimeOptions(stream=stream), strict=True)
    assert (copy.stream, copy.stream_owner) == (14, stream)


def test_what_is_not_given_the_artifact_says():
    params = {"allow_build_at_runtime": False, "maximum_cached_engines": 4, "cache_full": "evict", "other": 1}
    filled = RuntimeOptions().filled(params)
    assert (filled.allow_build_at_runtime, filled.maximum_cached_engines, filled.cache_full) == (False, 4, "evict")
    given = RuntimeOptions(allow_build_at_runtime=True, maximum_cached_engines=2, cache_full="native")
    assert given.filled(params) == given


def test_what_the_artifact_lacks_takes_the_converters_default():
    filled = RuntimeOptions().filled({})
    assert (filled.allow_build_at_runtime, filled.maximum_cached_engines, filled.cache_full) == (True, 1, "native")


def test_a_spoiled_artifact_is_told():
    with pytest.raises(InvalidParameterError, match="maximum_cached_engines must be an integer"):
        RuntimeOptions().filled({"maximum_cached_engines": "many"})
