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


class TestBetweenTwoGroups:
    """What a ring of some of the chips has of the links, counted on paper."""

    V5E = find("v5e-256")  # 16 x 16 chips of one core, whose ends are joined from 16 on
    LINK = V5E.accelerator.link

    @pytest.mark.parametrize(
        ("chips", "links"),
        [
            ([(0, 0), (0, 1)], 1),
            ([(0, 0), (0, 2)], 1 / 2),  # each message passes another's chip
            ([(0, 0), (0, 5)], 1 / 5),
            ([(0, y) for y in range(16)], 2),
            ([(0, y) for y in range(0, 16, 4)], 2 / 4),
            ([(0, y) for y in range(1, 16, 2)], 2 / 2),  # wherever it begins
            ([(0, y) for y in range(15)], 1),  # all but one are no ring
            ([(x, y) for x in (3, 4) for y in (5, 6)], 1 + 1),
            ([(x, y) for x in range(16) for y in (5, 7)], 2 + 1 / 2),
            ([(x, y) for x in range(0, 16, 8) for y in range(16)], 2 / 8 + 2),
        ],
    )
    def test_on_a_torus(self, chips, links):
        where = torus(16, 16)
        group = [where.index((*chip, 0)) for chip in chips]
        assert exchange_rate(self.V5E, group, where) == pytest.approx(links * self.LINK)

    def test_ends_are_joined_only_of_whole_cubes_of_v5p(self):
        """From 4 on and at its multiples; a part that is 2 wide is none."""
        place, where = find("v5p:2x4x8"), torus(2, 4, 8)
        link = place.accelerator.link
        along = [[where.index((x, 0, 0, 0)) for x in range(2)]]
        along += [[where.index((0, y, 0, 0)) for y in range(4)]]
        along += [[where.index((0, 0, z, 0)) for z in range(8)]]
        assert [exchange_rate(place, group, where) / link for group in along] == [1, 2, 2]
        assert exchange_rate(place, list(range(64)), where) == 5 * link

    def test_chips_that_stand_on_a_plane_may_say_their_height(self):
        group, flat = list(range(16)), torus(16, 16)
        high = [(x, y, 0, core) for x, y, core in flat]
        assert exchange_rate(self.V5E, group, high) == exchange_rate(self.V5E, group, flat)

    def test_a_slice_that_is_smaller_than_the_ring_has_none(self):
        place, where = find("v5e:4x4"), torus(4, 4)
        assert exchange_rate(place, [0, 1, 2, 3], where) == place.accelerator.link


@pytest.mark.parametrize(
    ("group", "rate"),
    [
        ([0, 1], 450e9),
        ([8, 15], 450e9),
        ([7, 8], 50e9),
        ([0, 1, 8, 9], 2 * 50e9),  # two ports a node
        ([0, 8, 16], 50e9),
        ([8, 9, 10, 0], 3 * 50e9),
        (list(range(32)), 8 * 50e9),
    ],
)
def test_gpus_send_to_other_nodes_by_as_many_ports_as_they_are(group, rate):
    assert exchange_rate(find("h100:32"), group, []) == rate


def test_a_network_is_no_faster_than_a_gpus_own_link():
    assert exchange_rate(find("t4:2"), [0, 1], []) == 16e9
    assert exchange_rate(find("l4:2"), [1, 0], []) == 32e9


def test_devices_of_a_cpu_share_what_it_has(monkeypatch):
    monkeypatch.setattr("gptj.hardware.measured_flops", lambda: 8e12)
    monkeypatch.setattr("gptj.hardware.measured_bandwidth", lambda size, seconds: 8e10)
    one, eight = find("CPU:1 "), find("cpu:8")
    assert (eight.devices, eight.chips, eight.platform, eight.name) == (8, 8, "cpu", "cpu:8")
    for name, whole in (("peak_flops", 8e12), ("bandwidth", 8e10), ("link", 8e10)):
        assert getattr(one.accelerator, name) == whole
        assert getattr(eight.accelerator, name) == whole / 8
    assert one.accelerator.memory == 8 * eight.accelerator.memory > 2**20
    assert exchange_rate(eight, [0, 1], []) == 1e10
    assert efficiency(eight.accelerator).share == 0.71


@pytest.mark.parametrize(
    ("kind", "size", "shape"),
    [
        # The clouds' own tables; v2 has no slice of 64, and v4 none above 8,192 cores.
        *(("v2", 512, "16x16"), ("v3", 64, "4x8"), ("v3", 2048, "32x32")),
        *(("v4", 8, "2x2x1"), ("v4", 4096, "8x16x16"), ("v5p", 8192, "16x16x16")),
        *(("v5e", 1, "1x1"), ("v5e", 8, "2x4"), ("v6e", 128, "8x16"), ("tpu7x", 64, "2x4x4")),
    ],
)
def test_how_the_chips_of_a_slice_stand(kind, size, shape):
    assert find(f"{kind}-{size}").topology == f"{kind}:{shape}"
    by_shape = find(f"{kind}:{shape}")
    assert by_shape.devices == find(f"{kind}-{size}").devices
    assert by_shape.topology == f"{kind}:{shape}"


@pytest.mark.parametrize("name", ["v2-64", "v5e:5", "v5e:4x", "v5p:2x2x2x2", "v3:x", "h100:4x4"])
def test_there_are_no_others(name):
    with pytest.raises(UserError, match="no hardware"):
        find(name)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        *(("NVIDIA H100 PCIe", "H100 PCIe"), ("NVIDIA H100 80GB HBM3", "H100")),
        *(("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"), ("NVIDIA A100-SXM4-80GB", "A100")),
        *(("TPU v5p", "TPU v5p"), ("TPU v5", "TPU v5"), ("tpu V5 LITE", "TPU v5 lite")),
        *(("NVIDIA L40S", "L40S"), ("NVIDIA L4", "L4"), ("Tesla T4", "T4")),
    ],
)
def test_of_several_kinds_that_a_name_holds_the_longest_is_meant(said, kind):
    assert accelerators.named(said).kind == kind


@pytest.mark.parametrize(
    ("kind", "devices", "seconds"),
    [
        ("all-reduce", 2, 1.0),  # half of it twice
        ("all-reduce", 4, 1.5),
        ("all-gather", 2, 0.5),
        ("all-gather", 4, 0.75),
        ("reduce-scatter", 4, 0.75),
        ("all-to-all", 4, 0.75),
        ("collective-permute", 2, 1.0),  # all of it once, however many there are
        ("collective-permute", 4, 1.0),
    ],
)
def test_how_long_a_gigabyte_takes_at_one_a_second(kind, devices, seconds):
    assert exchange_seconds(kind, 1e9, devices, 1e9) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("kind", "devices", "hops"),
    [
        ("all-reduce", 2, 2),
        ("all-reduce", 9, 8),
        ("all-gather", 2, 1),
        ("all-gather", 16, 8),
        ("collective-permute", 16, 16 / 15),
        ("collective-permute", 2, 2),
    ],
)
def test_nothing_is_quicker_than_the_way_there(kind, devices, hops):
    """Half round the ring, both ways; a permutation goes to a neighbour."""
    assert exchange_seconds(kind, 1, devices, 1e12) == pytest.approx(hops * 1e-6)
    assert exchange_seconds(kind, 1e12, 1, 1e12) == 0
