"""What is shown of plans in a terminal: every figure in its place, said once."""

import dataclasses
import io

import pytest
from rich.console import Console

from gptj.adapters import LoRAConfig
from gptj.plan import serve, terminal
from gptj.plan.compiled import Compiled, Exchange, TooLarge
from gptj.plan.measure import Measured
from gptj.plan.place import find
from gptj.plan.plan import Saving, plan_of
from gptj.plan.search import Candidate

GIB, MIB = 2**30, 2**20
FACTS = Compiled(2.6, 3 * GIB, GIB, 2 * GIB, GIB, 3350e9, (), 0, "JAX 9", "xla")


def exchange(kind, seconds, size=MIB, times=2, axes=("tensor",), is_hidden=False):
    return Exchange(kind, axes, 2, size, times, seconds, is_hidden)


@pytest.fixture
def plan(small_job):
    """A step that needs 4 GiB, of which one for what is computed; changes are to its facts."""

    def planned(**changes):
        return plan_of(small_job("h100:8", (2, 2, 2)), dataclasses.replace(FACTS, **changes))

    return planned


def shown(show, *arguments):
    """The lines, each with its runs of spaces made one."""
    console = Console(file=io.StringIO(), width=500)
    show(*arguments, console)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines() if line.strip()]


def of_step(plan, tokens=None, price=None):
    return shown(lambda console: terminal.show(plan, console, tokens, price))


class TestAPlan:
    def test_begins_with_what_is_planned(self, plan, small_job):
        assert terminal.headline(plan()) == (
            "1.84M parameters on h100:8: 8 x H100, mesh data=2,fsdp=2,tensor=2\n"
            "16 rows of 256 tokens (4.1k) a step, 2 x 2 a device; "
            "bfloat16, remat block, attention by xla, adamw"
        )
        two_cores = plan_of(small_job("v3-8", (2, 2, 2)), FACTS)
        assert "on v3-8: 8 x TPU v3, 4 chips, mesh" in terminal.headline(two_cores)
        silent = plan(attention=None)
        assert terminal.computing(silent) == "bfloat16, remat block, adamw"

    @pytest.mark.parametrize(
        ("lora", "moments", "said"),
        [
            (LoRAConfig(), "float32", "adamw"),
            (LoRAConfig(), "bfloat16", "adamw in bfloat16"),
            (
                LoRAConfig(8),
                "float32",
                "adamw, 73.7k in adapters of rank 8 beside bfloat16 weights",
            ),
            (
                LoRAConfig(8, quantize="int8"),
                "bfloat16",
                "adamw in bfloat16, 73.7k in adapters of rank 8 beside int8 weights",
            ),
        ],
    )
    def test_says_what_learns(self, small_job, lora, moments, said):
        """2 layers x 8 x (4 x 512 + 2 x 1280) = 73,728 numbers in adapters."""
        job = small_job("h100:8", (2, 2, 2), lora=lora)
        job = dataclasses.replace(
            job, optimizer=dataclasses.replace(job.optimizer, moments=moments)
        )
        assert terminal.learning(plan_of(job, FACTS)) == said

    def test_says_whether_it_fits_and_by_how_much_not(self, plan):
        assert terminal.verdict(plan()) == "it fits: 4 GiB of 74.5 GiB a device"
        large = plan(temporaries=83 * GIB)
        assert terminal.verdict(large) == (
            "it does not fit: it needs 86 GiB of 74.5 GiB a device, 11.5 GiB too much"
        )
        said = of_step(large)
        assert any(line.startswith("times below are as if it did. To make it") for line in said)
        assert not any("as if it did" in line for line in of_step(plan()))

    def test_says_where_its_figures_come_from(self, plan):
        assert terminal.how(plan()) == "compiled in 3 s by JAX 9"
        assert terminal.how(plan(seconds=0.0, versions="by formula")) == "by formula"
        refused = plan_of(plan().job, TooLarge(1.0, 90e9, 76e9, "no room"), FACTS)
        assert terminal.how(refused) == "refused by the hardware's compiler, the rest by formula"

    def test_draws_memory_to_the_width_of_what_there_is(self, plan):
        """Of 74.5 GiB weights have 2, so their bar is one character of 40; when 160 are needed
        the bars are of those."""
        said = of_step(plan())
        assert "weights 2 GiB █" in said
        assert "optimizer 1 GiB █" in said
        large = plan(temporaries=157 * GIB, weights=80 * GIB, optimizer=0, arguments=3 * GIB)
        assert f"weights 80 GiB {'█' * 20}" in of_step(large)

    def test_draws_what_is_kept_to_the_width_of_the_most(self, plan):
        said = of_step(plan())
        kept = {
            line.split()[0]: line.count("█") for line in said if "iB" in line or "bytes" in line
        }
        # By hand in test_estimate.py: 4.5 MiB, 2.25 MiB, 512 KiB, and nothing.
        assert [kept[each] for each in ("none", "dots", "block", "offload")] == [40, 20, 4, 0]

    def test_says_what_binds_and_what_is_predicted(self, plan):
        found = plan(exchanges=(exchange("all-reduce", 0.25),))
        said = of_step(found)
        assert "memory 1 <- the bound" in said
        assert "interconnect 0.25" in said
        assert sum("<- the bound" in line for line in said) == 1
        (predicted,) = [line for line in said if line.startswith("predicted: ")]
        assert predicted.startswith(
            "predicted: 1.25 s a step, 3,277 tokens/s, with products at 50.8"
        )
        assert predicted.endswith(" and 0.25 s of waiting for others")

    def test_has_the_shares_of_the_whole_machines_peak(self, plan):
        found, said = plan(), of_step(plan())
        assert "of 7.91 PFLOP/s MFU HFU" in said
        used = found.used
        for name, mfu, hfu in (
            ("as gptj train measures", used.gptj_mfu, used.gptj_hfu),
            ("as in the PaLM paper", used.palm_mfu, used.palm_hfu),
            ("as in GPT-J's article", used.article_mfu, used.article_hfu),
        ):
            assert f"{name} {100 * mfu:.1f} % {100 * hfu:.1f} %" in said

    def test_ends_with_the_run_if_its_tokens_are_known(self, plan):
        """A second a step of 4,096 tokens: a million steps are 11.6 days."""
        assert of_step(plan(), 4.096e9, 2.5)[-1] == (
            "4.1G tokens: 11.6 days, 2,222 device-hours (2,222 chip-hours), "
            "5,556 at 2.5 a chip-hour"
        )
        assert of_step(plan(), 4.096e9)[-1].endswith("(2,222 chip-hours)")
        assert "days" not in of_step(plan())[-1]


class TestCollectives:
    def test_of_a_kind_and_a_size_are_one_row_and_the_longest_is_first(self):
        same = [exchange("all-reduce", 0.25, times=n) for n in (2, 3)]
        others = [
            exchange("all-gather", 1.0),
            exchange("all-reduce", 0.125, size=2 * MIB),
            exchange("all-reduce", 0.0625, axes=("data",)),
            exchange("all-reduce", 0.75, is_hidden=True),
        ]
        found = terminal.grouped([same[0], *others, same[1]])
        assert [(each.kind, each.seconds, each.times) for each in found] == [
            ("all-gather", 1.0, 2),
            ("all-reduce", 0.75, 2),
            ("all-reduce", 0.5, 5),
            ("all-reduce", 0.125, 2),
            ("all-reduce", 0.0625, 2),
        ]
        assert terminal.grouped([]) == []

    def test_those_of_less_than_half_a_percent_are_one_row(self, plan):
        """Of 200 s in all, what takes one is shown and what takes less is not."""
        exchanges = (
            exchange("all-gather", 198.0, size=3 * MIB, times=1000, axes=("data", "fsdp")),
            exchange("all-reduce", 1.0, is_hidden=True),
            exchange("all-to-all", 0.5, size=MIB, times=3),
            exchange("collective-permute", 0.5, size=2 * MIB, times=4),
        )
        said = of_step(plan(exchanges=exchanges))
        at = said.index("collectives in a step over devices bytes times in all seconds")
        assert said[at + 1 : at + 4] == [
            "all-gather data+fsdp 2 3 MiB 1,000 2.93 GiB 198",
            "all-reduce tensor 2 1 MiB 2 2 MiB 1 hidden",
            "smaller ones 7 11 MiB 1",
        ]

    def test_have_no_table_where_there_are_none(self, plan):
        assert not any("collectives" in line for line in of_step(plan()))
        one = of_step(plan(exchanges=(exchange("all-gather", 1.0),)))
        assert not any("smaller ones" in line for line in one)


def test_what_is_measured_stands_beside_what_was_predicted(plan):
    """A second was predicted, and 4 GiB."""
    said = shown(terminal.show_measured, plan(), Measured("8 x H100", 0.8, 5 * GIB, 60.0))
    assert said[0] == "on 8 x H100:"
    assert said[2:] == [
        "s a step 1 0.8 +25 %",
        "tokens/s 4,096 5,120 -20 %",
        "memory a device 4 GiB 5 GiB -20 %",
    ]
    uncounted = shown(terminal.show_measured, plan(), Measured("cpu", 0.8, 0, 60.0))
    assert len(uncounted) == 4


@pytest.mark.parametrize(("seconds", "said"), [(0.5, "0.5 s"), (-0.1, "0 s")])
def test_what_the_parallel_block_saves(seconds, said):
    found = shown(terminal.show_saving, Saving(3 * MIB, 8 * MIB, seconds, 1000, 2500))
    assert found == [
        "over tensor a device all-reduces 3 MiB of activations a step in 1,000 goes; with the "
        f"block made sequential 8 MiB in 2,500. The parallel block saves 5 MiB and {said}."
    ]


class TestARanking:
    def test_has_its_places_and_says_what_is_left_out(self, plan):
        large = plan(temporaries=90 * GIB)
        found = [Candidate(plan(), ""), *[Candidate(plan(), "slower")] * 11]
        found += [Candidate(plan(), "slower"), *[Candidate(large, "needs more")] * 2]
        said = shown(terminal.show_search, found)
        assert said[1] == "1 data=2,fsdp=2,tensor=2 block 2 x 2 4 GiB 1 4,096 the best"
        assert said[12] == "12 data=2,fsdp=2,tensor=2 block 2 x 2 4 GiB 1 4,096 slower"
        assert said[13:] == ["and 3 more, of which 2 do not fit; all are in --json"]

    def test_that_is_short_is_shown_whole(self, plan):
        by_formula = plan(seconds=0.0)
        found = [Candidate(by_formula, ""), *[Candidate(plan(), "slower")] * 11]
        said = shown(terminal.show_search, found)
        assert len(said) == 13
        assert said[1].endswith("the best by formula")


@pytest.mark.parametrize("fits", [True, False])
def test_an_engine(small_job, fits):
    model = small_job("h100:8", (8, 1, 1)).model
    asked = serve.ServeJob(find("h100:8"), model, (4, 1, 2), 8, 200, "bfloat16", "int8", "int8", 2)
    rates = (serve.Rate(8, 0.002, "memory", True), serve.Rate(16, 0.0025, "compute", False))
    found = serve.ServePlan(
        asked, 1_839_616, 3 * GIB, 2 * GIB, GIB, 100.0, 2 * GIB, (20 if fits else 7) * GIB,
        12, 5000, rates, "by formula",
    )  # fmt: skip
    said = shown(terminal.show_serve, found)
    assert said[0] == (
        "serving 1.84M parameters (int8) on h100:8: 8 x H100, mesh data=4,tensor=2; 8 slots of 200 "
        "tokens, cache in int8; by formula"
    )
    assert said[1] == (
        "it fits: 8 GiB of 20 GiB a device" if fits else "it does not fit: 8 GiB of 7 GiB a device"
    )
    whole = 20 if fits else 8
    for name, gib in (("weights", 3), ("adapters", 2), ("keys and values", 1), ("temporaries", 2)):
        assert f"{name} {gib} GiB {'█' * round(40 * gib / whole)}" in said
    assert "8 2 4,000 memory" in said
    assert "16 2.5 6,400 compute does not fit" in said
    assert said[-1] == (
        "at 200 tokens 12 slots fit; a slot alone could have 5,000 (the model knows 256)"
    )
    plain = dataclasses.replace(asked, quantize=None, kv_cache="model", adapters=0)
    said = shown(terminal.show_serve, dataclasses.replace(found, job=plain, adapters=0))
    assert "(bfloat16)" in said[0]
    assert "cache in bfloat16" in said[0]
    assert not any("adapters" in line for line in said)
