"""The formulas, of a model small enough to count by hand.

Two layers of width 256: a layer has 4 x 256^2 + 2 x 256 x 1024 = 786,432 numbers in matrices and
1,792 in vectors; the embedding and the output have 512 x 256 = 131,072 each. On the mesh
data=2,fsdp=2,tensor=2 a device computes 2 rows of 256 tokens at a time, twice a step.
"""

import dataclasses

import pytest

from gptj.adapters import LoRAConfig
from gptj.config import ModelConfig
from gptj.plan import estimate
from gptj.plan.compiled import Exchange

EIGHT, NO_FSDP = (2, 2, 2), (4, 1, 2)
IN_LAYERS, EMBEDDINGS = 2 * 786_432, 2 * 131_072
MATRICES = IN_LAYERS + EMBEDDINGS
WHOLE = 2 * 3 * 256 + 2 * 256  # norms, and the bias of the feed-forward's output
HALVED = 2 * 1024 + 512  # biases that are split over tensor
OWN = MATRICES // 4 + WHOLE + HALVED // 2
"""Numbers that a device stores on the mesh of eight."""
QUERY = LoRAConfig(rank=8, targets=("q",))
"""Two layers of 256 x 8, split over fsdp, and of 8 x 256, split over tensor."""
ADAPTERS = 2 * 256 * 8 // 2 + 2 * 8 * 256 // 2
RATES = {"tensor": 1e9, "fsdp": 1e8, "data": 1e7}


def on(small_job, mesh=EIGHT, **changes):
    return small_job("h100:8", mesh, **changes)


def test_what_a_device_stores(small_job):
    assert estimate.stored(on(small_job))[0] == 4 * OWN
    beside = on(small_job, lora=QUERY)
    assert estimate.stored(beside)[0] == 2 * OWN + 4 * ADAPTERS
    # Whatever the batch: it is what is there between two steps.
    larger = dataclasses.replace(beside, batch=64, accumulate=8)
    assert estimate.stored(larger) == estimate.stored(beside)


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, MATRICES // 4 * (2 + 4) + (WHOLE + HALVED // 2) * (4 + 4)),
        ({"accumulate": 1}, MATRICES // 4 * 2 + (WHOLE + HALVED // 2) * 4),
        ({"dtype": "float32"}, OWN * (4 + 4)),
        ({"lora": QUERY}, ADAPTERS * (4 + 4)),
        ({"lora": QUERY, "accumulate": 1}, ADAPTERS * 4),
    ],
)
def test_gradients_are_as_wide_as_what_is_cast_and_their_sum_is_float32(small_job, changes, size):
    assert estimate.gradients(on(small_job, **changes)) == size


def test_what_the_layers_keep(small_job):
    """Of 512 tokens in 2 layers, in 2 bytes; products are split in two by tensor."""
    once = 2 * 512 * 2
    kept = {
        "offload": 0,
        "block": once * 256,
        "dots": once * (256 + (3 * 256 + 1024) / 2),
        "none": once * (2 * 256 + (4 * 256 + 1024) / 2) + IN_LAYERS // 2 * 2,
    }
    job = on(small_job)
    assert {remat: estimate.activations(job, remat) for remat in kept} == kept
    assert estimate.activations(job) == kept["block"]
    for remat in kept:
        assert estimate.activations(on(small_job, remat=remat)) == kept[remat]
    # Where nothing is gathered, no gathered weights are kept.
    gathered = IN_LAYERS // 2 * 2
    assert estimate.activations(on(small_job, NO_FSDP), "none") == kept["none"] - gathered
    wide = on(small_job, dtype="float32")
    assert all(estimate.activations(wide, remat) == 2 * kept[remat] for remat in kept)


STREAMS = 512 * (6 * 256 + (4 * 256 + 3 * 1024) / 2)
SCORES = 512 * 4 / 2 * 128 * 4 * 3
"""Of half the heads, in float32, thrice."""


@pytest.mark.parametrize(
    ("mesh", "changes", "size"),
    [
        # Gathered weights of one layer, and their gradients.
        (EIGHT, {}, 2 * 393_216 * 2 + STREAMS * 2 + SCORES),
        # All weights of the device, made narrow.
        (NO_FSDP, {}, MATRICES / 2 * 2 + STREAMS * 2 + SCORES),
        (NO_FSDP, {"dtype": "float32"}, STREAMS * 4 + SCORES),
        (EIGHT, {"dtype": "float32"}, 2 * 393_216 * 4 + STREAMS * 4 + SCORES),
        # Beside adapters: ready as they are stored, unless in parts or in few bits.
        (NO_FSDP, {"lora": QUERY}, STREAMS * 2 + SCORES),
        (EIGHT, {"lora": QUERY}, (393_216 + 256 * 256) * 2 + STREAMS * 2 + SCORES),
        (
            NO_FSDP,
            {"lora": dataclasses.replace(QUERY, quantize="int8")},
            (393_216 + 256 * 256) * 2 + STREAMS * 2 + SCORES,
        ),
    ],
)
def test_what_is_needed_while_a_layer_is_computed(small_job, mesh, changes, size):
    assert estimate.temporaries(on(small_job, mesh, **changes)) == size


def test_a_large_vocabulary_needs_more_than_a_layer(small_job):
    """Logits of 2 rows of 128 positions and half of 51,200 columns, thrice in float32; and the
    gradient of the output, unless that is left as it is."""
    model = ModelConfig(2, 256, 4, 16, 1024, 51_000, 51_200, 256)
    logits, output = 2 * 128 * 25_600 * 4 * 3, 256 * 25_600 * 4
    ready = (IN_LAYERS + 2 * 256 * 51_200) / 2 * 2
    assert estimate.temporaries(on(small_job, NO_FSDP, model=model)) == ready + logits + output
    assert estimate.temporaries(on(small_job, NO_FSDP, model=model, lora=QUERY)) == logits


def test_long_rows_have_larger_scores(small_job):
    model = ModelConfig(2, 256, 4, 16, 1024, 500, 512, 4096)
    found = on(small_job, NO_FSDP, model=model, seq=4096, batch=4, accumulate=1)
    streams, scores = 8 * STREAMS, 4096 * 4 / 2 * 512 * 4 * 3
    assert estimate.temporaries(found) == MATRICES / 2 * 2 + streams * 2 + scores


def exchange(kind, axis, size, times, parts):
    return Exchange(
        kind, (axis,), 2, size, times, pytest.approx(times * parts * size / RATES[axis])
    )


def test_what_is_exchanged(small_job):
    """A layer's stream each way, and once more for the embedding or the output; a layer's
    weights each way and their gradients once; every gradient over data."""
    stream, layer = 512 * 256 * 2, MATRICES // 2 * 2 // 2
    assert estimate.exchanges(on(small_job), RATES) == [
        exchange("all-reduce", "tensor", stream, 2 * 2 * 2, 1),
        exchange("all-reduce", "tensor", stream, 2 * 2, 1),
        exchange("all-gather", "fsdp", layer, 2 * 2 * 2, 1 / 2),
        exchange("reduce-scatter", "fsdp", layer, 2 * 2, 1 / 2),
        exchange("all-reduce", "data", layer // 2, 2 * 2, 1),
    ]
    assert not any(each.is_hidden for each in estimate.exchanges(on(small_job), RATES))
    assert estimate.exchanges(small_job("h100:1", (1, 1, 1)), {}) == []
    (_, _, *others) = estimate.exchanges(on(small_job, NO_FSDP), RATES)
    assert [(each.axes, each.devices, each.bytes) for each in others] == [(("data",), 4, layer)]


def test_of_adapters_their_own_gradients_travel_and_all_stored_weights(small_job):
    table = 2 * 256 * 8 + 2 * 8 * 256 // 2  # of a device, gathered over fsdp
    read = 2 * (2 * OWN + 4 * ADAPTERS) // 2
    found = estimate.exchanges(on(small_job, lora=QUERY), RATES)
    assert [(each.kind, each.bytes, each.times) for each in found[2:]] == [
        ("all-gather", read, 8),
        ("reduce-scatter", 4 * table // 2, 4),
        ("all-reduce", 4 * table // 2 // 2, 4),
    ]


def test_pairs_are_two_rows_and_two_passes_more(small_job):
    rows = estimate.exchanges(on(small_job, lora=QUERY), RATES)
    pairs = estimate.exchanges(on(small_job, lora=QUERY, dpo_beta=0.1), RATES)
    for one, two in zip(rows, pairs, strict=True):
        is_activation, is_read = one.axes == ("tensor",), one.kind == "all-gather"
        assert two.bytes == one.bytes * (2 if is_activation else 1)
        assert two.times == one.times * (2 if is_activation or is_read else 1)
    assert (estimate.readings(on(small_job)), estimate.readings(on(small_job, lora=QUERY))) == (
        0,
        0,
    )
    assert estimate.readings(on(small_job, lora=QUERY, dpo_beta=0.1)) == 2


GATHERED = MATRICES // 2 + WHOLE + HALVED // 2


def layers(passes, tokens=512):
    """Bytes of two layers' activations in one microbatch: streams in 2, and scores in 4."""
    streams = tokens * (20 * 256 + (12 * 256 + 8 * 1024) / 2)
    return 2 * (streams * 2 + tokens * 4 / 2 * 256 / 2 * 4 * 2 * passes)


@pytest.mark.parametrize(
    ("changes", "passes", "summed"),
    [
        ({}, 4, 2 * 2 + 8),
        ({"remat": "offload"}, 4, 2 * 2 + 8),
        ({"remat": "none"}, 3, 2 * 2 + 8),
        ({"remat": "dots"}, 3, 2 * 2 + 8),
        ({"accumulate": 1, "batch": 8}, 4, 2 * 2),
    ],
)
def test_what_is_read_and_written(small_job, changes, passes, summed):
    job = on(small_job, **changes)
    own, state = estimate.stored(job)
    once = GATHERED * (2 * passes + summed) + layers(passes)
    assert estimate.traffic(job) == job.accumulate * once + 2 * state + 3 * own


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_beside_adapters_a_pass_less_is_read(small_job, quantize):
    lora = dataclasses.replace(QUERY, quantize=quantize)
    rows, pairs = (on(small_job, lora=lora, dpo_beta=beta) for beta in (None, 0.1))
    own, state = estimate.stored(rows)
    read = own + (2 * GATHERED * 2 if quantize else 0)  # written in more bits, and read again
    assert estimate.traffic(rows) == 2 * (3 * read + layers(4)) + 3 * state
    assert estimate.traffic(pairs) == 2 * (5 * read + layers(4, 1024) * 6 / 4) + 3 * state


def test_all_of_it_together(small_job):
    job = on(small_job)
    found = estimate.estimated(job, RATES)
    own, state = estimate.stored(job)
    assert (found.weights, found.optimizer, found.arguments) == (own, state, own + state)
    assert found.temporaries == (
        estimate.gradients(job) + estimate.activations(job) + estimate.temporaries(job)
    )
    assert found.memory == found.arguments + found.temporaries
    assert (found.seconds, found.open_loops, found.attention) == (0, 0, None)
    assert found.traffic == estimate.traffic(job)
    assert list(found.exchanges) == estimate.exchanges(job, RATES)
    assert found.versions == "by formula, not compiled"
