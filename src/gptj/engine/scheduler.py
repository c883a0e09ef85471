"""Who has which slot, whose prompt is read next, and who waits: first come, first served."""

from __future__ import annotations

from collections import deque

from gptj.engine.job import Job, State


class Scheduler:
    """The queue and the slots. Slots come in equal parts, one a part of the mesh's batch."""

    def __init__(self, slots: int, parts: int) -> None:
        self.waiting: deque[Job] = deque()
        self.slots: list[Job | None] = [None] * slots
        self._parts, self._reading = parts, deque[Job]()

    @property
    def reading(self) -> bool:
        """Whether a prompt is on its way into the cache."""
        return bool(self._reading)

    @property
    def drawing(self) -> list[Job]:
        """Those that draw, in the order of their slots."""
        return [job for job in self.slots if job and job.state is State.DRAWING]

    def admit(self) -> list[Job]:
        """Give free slots to those who waited longest."""
        admitted = []
        free = deque(slot for slot, job in enumerate(self.slots) if job is None)
        while self.waiting and free:
            job = self.waiting[0]
            if job.leader and job.leader.state in (State.WAITING, State.READING):
                break  # what the leader reads, the others find in the prefix cache
            self.waiting.popleft()
            job.slot, job.state = free.popleft(), State.READING
            self.slots[job.slot] = job
            self._reading.append(job)
            admitted.append(job)
        return admitted

    def next_readers(self) -> list[Job | None]:
        """For each part the job whose prompt is to be read next, if there is one."""
        size = len(self.slots) // self._parts
        chosen: list[Job | None] = [None] * self._parts
        for job in self._reading:
            part = job.slot // size
            chosen[part] = chosen[part] or job
        return chosen

    def has_read(self, job: Job) -> None:
        """The prompt is in the cache: the job draws from now on."""
        self._reading.remove(job)
        job.state = State.DRAWING

    def leave(self, job: Job) -> None:
        """Take a job out, wherever it is."""
        if job.state is State.WAITING:
            self.waiting.remove(job)
        elif self.slots[job.slot] is job:
            self.slots[job.slot] = None
        if job in self._reading:
            self._reading.remove(job)
        job.state = State.DONE
