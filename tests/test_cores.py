"""How many processors there are to use."""

import os

from gptj import cores


def test_they_are_those_this_process_may_run_on(monkeypatch):
    assert cores.usable() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    for count, found in ((12, 12), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert cores.usable() == found
