"""The engine: requests in, text out, all of them drawing together whenever they come.

    engine = Engine(params, config, tokenizer)
    engine.submit(Request("It was"))
    while engine.busy:
        for delta in engine.step():
            ...

A request's tokens and log-probabilities are the same bits alone and in company, in any slot, with
its prompt read or found in the prefix cache: every program has one shape, a row of it sees no
other, and a prompt is read in chunks that begin at the same places whoever reads them.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from gptj.config import ModelConfig
from gptj.convert.adapted import Adapter
from gptj.engine import programs
from gptj.engine.adapters import RANK, AdapterTable
from gptj.engine.admission import check_draft, prompt_tokens
from gptj.engine.config import EngineConfig
from gptj.engine.device import Device
from gptj.engine.guide import Guides
from gptj.engine.job import Burst, Job, State, best, logprob_at
from gptj.engine.prefix import PrefixCache
from gptj.engine.request import Completion, Delta, Request, SamplingParams
from gptj.engine.scheduler import Scheduler
from gptj.engine.slots import one_slot
from gptj.engine.step import Draft
from gptj.engine.text import TextWriter
from gptj.engine.trial import Trial
from gptj.errors import UserError
from gptj.model import Params
from gptj.sharding import batch_ways
from gptj.tokenizer import Tokenizer


class Engine:
    """A model that answers requests. Not for two threads at once."""

    def __init__(
        self,
        params: Params[Array],
        config: ModelConfig,
        tokenizer: Tokenizer | None,
        options: EngineConfig = EngineConfig(),
        draft: Draft | None = None,
        base: str | os.PathLike[str] | None = None,
    ) -> None:
        """An engine on the mesh that is set, computing in the dtype of the weights.

        Args:
          tokenizer: none is needed for prompts of ids; then completions have no text.
          draft: a smaller model of the same vocabulary, to guess with.
          base: where the model was loaded from, so that adapters of others can be told.

        Raises:
          UserError: the mesh does not divide the model, the draft does not fit, or the model has
            no such context.
        """
        options = options.rounded(batch_ways())
        self.config, self.tokenizer, self.options = config, tokenizer, options
        self.positions = options.positions or config.context
        if self.positions > config.context:
            raise UserError(
                f"positions={self.positions} is more than the model's context of {config.context}: "
                "lower it"
            )
        if draft:
            check_draft(draft.config, config, self.positions, options.speculate)
        self.device = Device(
            params,
            config,
            slots=options.slots,
            positions=self.positions,
            chunk=options.chunk,
            burst=options.burst,
            guesses=options.speculate,
            draft=draft,
            int8_cache=options.kv_cache == "int8",
            adapters=options.max_adapters,
            adapter_rank=options.max_adapter_rank or RANK,
        )
        self.adapters = AdapterTable(self.device, config, options, base)
        self._trial = Trial(options.slots) if self.device.may_spare_draft else None
        self._guides = Guides(tokenizer, config.padded_vocab_size)
        parts = self.device.parts
        self._scheduler = Scheduler(options.slots, parts)
        self.prefix = PrefixCache(options.prefix_bytes if parts == 1 else 0, options.chunk)
        self._asked: dict[int, list[Job]] = {}
        self._numbers, self._bursts = itertools.count(), deque[Burst]()
        self._ended: list[Job] = []

    @property
    def busy(self) -> bool:
        """Whether a request is not answered yet."""
        return bool(self._asked)

    @property
    def drawing(self) -> list[Job]:
        """The completions that draw now."""
        return self._scheduler.drawing

    def warm_up(self) -> None:
        """Compile every program, so that no request waits for it: see `compilations`."""
        self.device.set_allowed(0, np.ones(self.config.padded_vocab_size, bool))
        only_read = SamplingParams(max_tokens=0, prompt_logprobs=0)
        for size in self.options.sizes:
            length = min(size, self.positions) + 1
            for _ in range(2):  # the second finds what the first has read
                self.run([Request([0] * length, only_read, score_from=length)])
        self.run([Request([0], SamplingParams(max_tokens=1))])
        self.adapters.warm_up()
        self.prefix.clear()

    @staticmethod
    def compilations() -> int:
        """How many programs have been compiled so far in this process, by any engine."""
        programs_run: tuple[Any, ...] = programs.ALL
        return sum(program._cache_size() for program in programs_run)

    def load_adapter(self, name: str, adapter: str | os.PathLike[str] | Adapter) -> None:
        """Answer requests for this name with a low-rank adapter, from now on.

        Nobody has to wait for more than its numbers to be read and copied: nothing is compiled.

        Args:
          adapter: a run that trained one, or a folder of PEFT's.

        Raises:
          UserError: it is not one of this model's, its rank is too large, the name is in use, or
            there is no room left.
        """
        self.adapters.load(name, self.adapters.read(adapter))

    def unload_adapter(self, name: str) -> None:
        """Take no more requests for an adapter. Those there are keep it until they are answered.

        Raises:
          UserError: there is none of this name.
        """
        self.adapters.unload(name)

    def submit(self, request: Request) -> int:
        """Queue a request; the number is the one its deltas carry.

        Raises:
          UserError: the prompt leaves no room in the context, or names tokens that do not exist; or
            there is no such adapter.
        """
        return self._queue(self._tokens(request, "the prompt"), request)

    def _queue(self, prompt: list[int], request: Request) -> int:
        if self.options.speculate and self.device.break_even is None:
            self.device.judge(self.options.break_even)
        sampling = request.sampling
        room = sampling.max_tokens
        if sampling.overflow == "stop":
            room = min(room, max(0, self.positions - len(prompt)))
        number, guesses = next(self._numbers), self._guesses(sampling)
        # What a draft that is spared has not read is of no use to one that is not.
        is_spared = self._trial is not None and self.device.is_guessing and not guesses
        adapter = self.adapters.of(request)
        kind = f"{'spared' if is_spared else ''}{f' adapter {adapter.number}' if adapter else ''}"
        names = self.prefix.names(prompt[:-1], kind.encode())
        jobs: list[Job] = []
        for choice in range(sampling.drawn):
            ends, writer = sampling.ends(self._eos), TextWriter(self.tokenizer, sampling.stop)
            leader = jobs[0] if jobs and names else None
            job = Job(
                number, choice, prompt, sampling, request.score_from, room, names, ends, writer,
                self._guides.start(sampling), leader, guesses, adapter,
            )  # fmt: skip
            jobs.append(job)
        self._asked[number] = jobs
        self.adapters.begin(adapter)
        self._scheduler.waiting.extend(jobs)
        return number

    def _guesses(self, sampling: SamplingParams) -> bool:
        """Whether several tokens of a request may be drawn in one step."""
        if not self.device.is_guessing or sampling.guide or sampling.overflow != "stop":
            return False
        return not self._trial or self._trial.begins(self.device.break_even or 1)

    def cancel(self, number: int) -> None:
        """End a request where it stands, for the reason `cancelled`; one that is over stays so."""
        for job in self._asked.get(number, ()):
            if not job.is_done:
                self._let_go(job)
                job.finish("cancelled")
                self._ended.append(job)

    def step(self) -> list[Delta]:
        """Let requests in, read on in their prompts, draw, and hand out what was drawn before."""
        self._admit()
        self._read()
        self._draw()
        return self._collect()

    def run(
        self,
        requests: Iterable[Request],
        on_delta: Callable[[Delta], None] | None = None,
        what: str = "prompt",
    ) -> list[list[Completion]]:
        """Answer requests, and nothing else meanwhile: the completions of each.

        Args:
          on_delta: called with each piece as it comes, its `request` the index in `requests`.
          what: what an error calls a prompt, before its number.
        """
        checked = [(self._tokens(each, f"{what} {n}"), each) for n, each in enumerate(requests)]
        index = {self._queue(*each): n for n, each in enumerate(checked)}
        done: list[dict[int, Completion]] = [{} for _ in index]
        while self.busy:
            for delta in self.step():
                if delta.request not in index:  # cancelled before
                    continue
                delta = dataclasses.replace(delta, request=index[delta.request])
                if delta.completion:
                    done[delta.request][delta.choice] = delta.completion
                if on_delta:
                    on_delta(delta)
        return [[choices[n] for n in sorted(choices)] for choices in done]

    def _tokens(self, request: Request, what: str) -> list[int]:
        tokens = prompt_tokens(request, what, self.config, self.tokenizer, self.positions)
        self.adapters.of(request)  # refused before anything is queued
        self._guides.start(request.sampling)
        return tokens

    @property
    def _eos(self) -> int | None:
        return self.tokenizer.eos_id if self.tokenizer else None

    def _admit(self) -> None:
        for job in self._scheduler.admit():
            usable = (job.score_from - 1) // self.options.chunk if job.is_scored else None
            chunks = self.prefix.find(job.names[:usable])
            for index, chunk in enumerate(chunks):
                self.device.copy_in(job.slot, index * self.options.chunk, chunk)
            job.read = len(chunks) * self.options.chunk
            # Not active yet, but at its last position, where its steps write no harm.
            values = one_slot(
                self.config, job.prompt, job.sampling,
                eos=self._eos, choice=job.choice, room=job.room, active=False,
                adapter=job.adapter.index if job.adapter else 0,
                guessing=job.guesses, history=self.device.history,
                allowed=job.guide.allowed() if job.guide else None,
            )  # fmt: skip
            self.device.put(job.slot, values)
            if job.is_read:
                self._has_read(job)

    def _read(self) -> None:
        """Read some chunks of prompts."""
        for _ in range(self.options.chunks_a_step):
            if not self._scheduler.reading:
                return
            self._read_chunk()

    def _read_chunk(self) -> None:
        """One chunk in each part of the mesh: of the prompt that was let in first."""
        readers = self._scheduler.next_readers()
        size = self._size(max(job.to_read - job.read for job in readers if job))
        wanted = [job.sampling.prompt_logprobs for job in readers if job and job.is_scored]
        pieces = [
            (job.slot, job.read, job.prompt[job.read : job.read + size + 1]) if job else None
            for job in readers
        ]
        guessing = not self._trial or any(job and job.guesses for job in readers)
        found = self.device.read(pieces, size, 2 if any(wanted) else 1 if wanted else 0, guessing)
        for part, job in enumerate(readers):
            if job:
                self._keep(job)
                if job.is_scored:
                    mine = jax.tree.map(lambda x, part=part: np.asarray(x[part]), found)
                    job.push_scores(mine, size)
                job.read += size
                if job.is_read:
                    self._has_read(job)

    def _size(self, left: int) -> int:
        """How large a chunk is read where so much of a prompt is left: its end by a smaller one.

        A function of the prompt alone, as the bits must be; so on a mesh that reads several prompts
        at once there is but one size.
        """
        sizes = self.options.sizes if self.device.parts == 1 else self.options.sizes[:1]
        return min((size for size in sizes if size >= left), default=self.options.chunk)

    def _keep(self, job: Job) -> None:
        """Keep the chunk just read for others whose prompts begin so."""
        index = job.read // self.options.chunk
        if index < len(job.names) and self.prefix.wants(job.names[index]):
            chunk = self.device.copy_out(job.slot, job.read)
            self.prefix.keep(job.names[: index + 1], chunk)

    def _has_read(self, job: Job) -> None:
        self._scheduler.has_read(job)
        if job.room:
            self.device.set_active(job.slot, True)
        else:
            job.finish("length")
            self._scheduler.leave(job)
            self._ended.append(job)

    def _draw(self) -> None:
        """Dispatch a burst of decode steps."""
        drawing = self._scheduler.drawing
        if not drawing:
            return
        steps = self.options.burst
        if self._scheduler.reading or self._guided:
            steps = 1
        elif self._scheduler.waiting:  # a slot that becomes free should not stand idle
            steps = min(steps, *(max(1, job.room - len(job.tokens)) for job in drawing))
        tokens, found = self.device.draw(steps)
        owners = [j if j and j.state is State.DRAWING else None for j in self._scheduler.slots]
        self._bursts.append(Burst(tokens, found, owners))

    def _collect(self) -> list[Delta]:
        """What came of the burst before the last one, which runs meanwhile.

        A guided completion's next step has to wait for its last.
        """
        touched, self._ended = self._ended, []
        ahead = 1 if self._scheduler.drawing and not self._guided else 0
        while len(self._bursts) > ahead:
            touched += self._take(self._bursts.popleft())
        if not self._scheduler.drawing:  # of the one that runs nobody wants anything
            self._bursts.clear()
        return self._deltas(touched)

    @property
    def _guided(self) -> bool:
        return any(job.guide for job in self._scheduler.drawing)

    def _take(self, burst: Burst) -> list[Job]:
        """Give the tokens of a burst to their jobs; returns those that got any."""
        tokens, touched = np.asarray(burst.tokens), []
        by_step = np.any(tokens.reshape(self.options.burst, -1, tokens.shape[1]) >= 0, axis=1)
        wanted = any(job and job.wants_logprobs for job in burst.owners)
        found = jax.tree.map(np.asarray, burst.found) if wanted else None
        for slot, job in enumerate(burst.owners):
            if job is None or job.is_done:
                continue
            for n, token in enumerate(tokens[:, slot].tolist()):
                if token < 0 or job.is_done:
                    continue
                own = None
                if found and job.wants_logprobs:
                    mine = jax.tree.map(lambda x, slot=slot: x[:, slot], found)
                    own = logprob_at(mine, n, token, job.sampling.logprobs or 0)
                job.push(token, own)
            touched.append(job)
            job.steps += int(by_step[:, slot].sum())
            if job.is_done:
                self._let_go(job)
                if self._trial and job.guesses:
                    self._trial.ended(len(job.tokens), job.steps)
            elif job.guide:
                self.device.set_allowed(slot, job.guide.allowed())
        return touched

    def _let_go(self, job: Job) -> None:
        """Free a job's slot; its device may not know yet that it is over."""
        if job.slot >= 0 and self._scheduler.slots[job.slot] is job:
            self.device.set_active(job.slot, False)
        self._scheduler.leave(job)

    def _deltas(self, touched: Sequence[Job]) -> list[Delta]:
        """What is new of these jobs; the best of a request only once all of it are done."""
        jobs = dict.fromkeys(touched)
        shown = (job.news() for job in jobs if job.sampling.drawn == job.sampling.n)
        deltas = [delta for delta in shown if delta]
        for number in dict.fromkeys(job.request for job in jobs):
            asked = self._asked[number]
            if all(job.is_done for job in asked):
                del self._asked[number]
                self.adapters.end(asked[0].adapter)
                sampling = asked[0].sampling
                if sampling.drawn > sampling.n:
                    deltas += best(asked, sampling.n)
        return deltas
