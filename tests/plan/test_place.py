"""Hardware by name, and how fast its devices exchange."""

import pytest

from gptj import accelerators
from gptj.errors import UserError
from gptj.plan.compiled import axis_rates, exchange_seconds
from gptj.plan.hardware import EFFICIENCIES, OTHERS, efficiency
from gptj.plan.place import SLICES, exchange_rate, find


@pytest.mark.parametrize(
    ("name", "devices", "chips", "topology", "kind"),
    [
        ("v3-256", 256, 128, "v3:8x16", "TPU v3"),
        ("v3-8", 8, 4, "v3:2x2", "TPU v3"),
        ("v4-64", 32, 32, "v4:2x4x4", "TPU v4"),
        ("v5p-64", 32, 32, "v5p:2x4x4", "TPU v5p"),
        ("v5e-256", 256, 256, "v5e:16x16", "TPU v5 lite"),
        ("v5litepod-16", 16, 16, "v5e:4x4", "TPU v5 lite"),
        ("V6E-16", 16, 16, "v6e:4x4", "TPU v6 lite"),
        ("v5p:4x4x8", 128, 128, "v5p:4x4x8", "TPU v5p"),
        ("h100:8", 8, 8, "", "H100"),
        ("h200", 1, 1, "", "H200"),
        ("a100-16", 16, 16, "", "A100"),
        ("h100-pcie:2", 2, 2, "", "H100 PCIe"),
    ],
)
def test_names(name, devices, chips, topology, kind):
    place = find(name)
    assert (place.devices, place.chips, place.topology) == (devices, chips, topology)
    assert place.accelerator.kind == kind
    assert find(place.name) == place


@pytest.mark.parametrize("name", ["v9-8", "v3-7", "h100:0", "gpu", "", "cpu:0", "cpu:x"])
def test_an_unknown_name_lists_those_there_are(name):
    with pytest.raises(UserError, match=r"no hardware .*v3-8\|32\|.*h100:N.*cpu:N"):
        find(name)


def test_every_slice_has_the_devices_its_name_says():
    for kind, sizes in SLICES.items():
        for size in sizes:
            place = find(f"{kind}-{size}")
            counts_cores = kind not in ("v5e", "v6e")
            assert place.chips == (size // 2 if counts_cores else size)


def test_every_accelerator_names_its_source_and_jaxs_name_finds_it():
    for each in accelerators.ACCELERATORS:
        assert "http" in each.source
        assert accelerators.named(f"NVIDIA {each.kind} 80GB") is each
    assert accelerators.named("TPU v5 lite").peak_flops == 197e12
    assert accelerators.named("cpu") is None
    assert all(0 < each.share < 1 and each.source for each in [*EFFICIENCIES.values(), OTHERS])
    assert efficiency(accelerators.named("L4")) is OTHERS


def torus(*sizes, cores=1):
    """Coordinates row by row, the core last."""
    places = [()]
    for size in (*sizes, cores):
        places = [(*place, i) for place in places for i in range(size)]
    return places


def test_a_ring_uses_both_directions_where_its_ends_are_joined():
    place = find("v5e-256")
    where = torus(16, 16)
    link = place.accelerator.link
    assert exchange_rate(place, list(range(16)), where) == 2 * link  # a whole column
    assert exchange_rate(place, list(range(8)), where) == link  # half of one
    assert exchange_rate(place, list(range(256)), where) == 4 * link
    assert exchange_rate(place, [0, 16], where) == link  # neighbours


def test_the_cores_of_a_chip_share_its_links_and_its_memory():
    place, where = find("v3-32"), torus(4, 4, cores=2)
    link = place.accelerator.link
    assert exchange_rate(place, [0, 1], where) == place.accelerator.bandwidth
    assert exchange_rate(place, list(range(8)), where) == link  # all cores of four chips
    assert exchange_rate(place, list(range(0, 8, 2)), where) == link / 2  # one of each


def test_groups_that_stand_in_one_anothers_way_share_the_links_between():
    """GPT-J's own: tensor within 2 x 2 chips, so that rings over data interleave in both dims."""
    place, where = find("v3-256"), torus(8, 16, cores=2)
    place_of = {each: number for number, each in enumerate(where)}
    every_other = [place_of[x, y, 0] for x in range(0, 8, 2) for y in range(0, 16, 2)]
    assert exchange_rate(place, every_other, where) == 2 * place.accelerator.link / 2 / 2
    ring = find("v5e-256")
    assert exchange_rate(ring, list(range(0, 16, 2)), torus(16, 16)) == ring.accelerator.link


def test_gpus_of_a_node_share_a_switch_and_others_a_network():
    place = find("h100:16")
    inside = exchange_rate(place, list(range(8)), [])
    assert inside == 450e9
    assert exchange_rate(place, [0, 8], []) == accelerators.NETWORK
    assert exchange_rate(place, list(range(16)), []) == 8 * accelerators.NETWORK
    assert axis_rates((2, 1, 8), place) == {
        "data": accelerators.NETWORK, "tensor": inside, "data+tensor": 8 * accelerators.NETWORK
    }  # fmt: skip
    assert axis_rates((1, 1, 1), place) == {}


def test_a_ring_sends_all_but_its_own_part_twice():
    assert exchange_seconds("all-reduce", 8e9, 8, 1e9) == pytest.approx(14)
    assert exchange_seconds("all-gather", 8e9, 8, 1e9) == pytest.approx(7)
    assert exchange_seconds("reduce-scatter", 8e9, 2, 1e9) == pytest.approx(4)
    assert exchange_seconds("collective-permute", 8e9, 8, 1e9) == pytest.approx(8)
    assert exchange_seconds("all-reduce", 8e9, 1, 1e9) == 0
    assert exchange_seconds("all-reduce", 1, 8, 1e9) == pytest.approx(8e-6)  # the way itself
