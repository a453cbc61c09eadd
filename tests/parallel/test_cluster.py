"""Jobs on actors of a Ray cluster."""

import gc
import os
from functools import partial

import pytest

from pipelines.errors import SkipRNNError
from pipelines.parallel.cluster import connected, map_on_actors

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # of what older versions of Ray leave


@pytest.mark.slow(reason="a Ray cluster, and workers that begin")
def test_jobs_are_done_and_a_worker_that_cannot_begin_says_why():
    pytest.importorskip("ray")
    with connected("local") as ray:
        done = dict(map_on_actors(ray, 3, abs, iter([-1, -2]), ahead=2, retries=0, num_gpus=0))
        assert done == {-1: 1, -2: 2}
        with pytest.raises(SkipRNNError, match=r"could not begin: .*No such file or directory: '/nowhere'"):
            list(map_on_actors(ray, 1, abs, iter([1]), retries=0, num_gpus=0, begin=partial(os.stat, "/nowhere")))
    gc.collect()
