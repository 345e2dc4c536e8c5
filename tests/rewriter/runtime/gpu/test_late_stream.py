"""Work that is only enqueued is done when somebody waits: nothing may be read, or used again, before that."""

import numpy as np


def test_a_stream_that_is_late(load_double, fake_cuda, fake_trt, tmp_path, monkeypatch):
    hybrid = load_double("hybrid")
    with fake_cuda.opened(lazy=True) as cuda:
        hybrid.use_islands_of_the_double(monkeypatch, cuda)
        trt = fake_trt.FakeTrt(cuda)
        case = hybrid.make_case(hybrid.SANDWICH, tmp_path, fake_trt, ("Sin",))
        executor = hybrid.open_case(case, cuda, trt)
        for seed in range(5):
            for size in (1, 8, 3):
                feeds = hybrid.feeds_of(case, size, seed=seed)
                execution = executor.run(feeds)
                assert (execution.engine_runs, execution.fallbacks) == (2, {})
                np.testing.assert_allclose(execution.outputs["y"], case.native(feeds)["y"], rtol=1e-6)
        assert executor.stats()["graphs"] == 3
        feeds = [hybrid.feeds_of(case, 3, seed=seed) for seed in range(20)]
        kept = [executor.run(item, on_device=True).outputs["y"] for item in feeds]
        for item, output in zip(feeds, kept, strict=True):
            np.testing.assert_allclose(output.numpy(), case.native(item)["y"], rtol=1e-6)
        del kept, output
        executor.close()
        trt.finish()
