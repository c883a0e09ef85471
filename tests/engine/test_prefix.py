"""What is kept of prompts: found by their beginning, within its bytes, the oldest gone first."""

import jax.numpy as jnp
from hypothesis import given
from hypothesis import strategies as st

from gptj.engine.cache import LayerCache
from gptj.engine.prefix import PrefixCache

CHUNK = 4
ONE = (LayerCache(jnp.zeros(8), jnp.zeros(8)),)  # 64 bytes


def filled(most_bytes: int, *prompts: list[int]) -> PrefixCache:
    cache = PrefixCache(most_bytes, CHUNK)
    for prompt in prompts:
        names = cache.names(prompt)
        for end in range(1, len(names) + 1):
            if cache.wants(names[end - 1]):
                cache.keep(names[:end], ONE)
    return cache


def test_only_whole_chunks_have_names_and_each_names_all_before_it():
    cache = PrefixCache(1000, CHUNK)
    assert cache.names([1, 2, 3]) == []
    long, other = cache.names([1, 2, 3, 4, 5, 6, 7, 8, 9]), cache.names([0, 2, 3, 4, 5, 6, 7, 8])
    assert len(long) == len(other) == 2
    assert not set(long) & set(other)
    assert cache.names([1, 2, 3, 4, 0, 0, 0, 0])[0] == long[0]


def test_a_prompt_finds_what_it_shares():
    cache = filled(1000, list(range(12)))
    assert len(cache.find(cache.names([*range(8), 0, 0, 0, 0]))) == 2
    assert cache.find(cache.names([5, *range(11)])) == []
    assert (cache.hits, cache.misses) == (2, 4)


def test_the_least_recently_used_goes_first_and_a_prompts_end_before_its_beginning():
    cache = filled(64 * 4, list(range(8)), list(range(20, 28)))
    cache.find(cache.names(list(range(8))))
    cache.keep(cache.names([9] * 4), ONE)
    assert len(cache.find(cache.names(list(range(20, 28))))) == 1
    assert len(cache.find(cache.names(list(range(8))))) == 2


def test_nothing_is_kept_in_no_room_or_larger_than_all_of_it():
    assert filled(0, list(range(8))).names(list(range(8))) == []
    assert len(filled(63, list(range(8)))) == 0


@given(
    prompts=st.lists(st.lists(st.integers(0, 1), min_size=4, max_size=16), max_size=20),
    room=st.integers(0, 6),
)
def test_it_never_holds_more_than_its_bytes(prompts, room):
    cache = filled(64 * room, *prompts)
    assert len(cache) <= room
    assert cache._bytes == 64 * len(cache)
