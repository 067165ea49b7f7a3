"""The loop over jobs that train together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from adapters.batch.trainable import TrainableBatch
from training.joint import JointJob, JointReport
from training.joint.admission import can_join, shares_base
from training.joint.chance import own_chance
from training.joint.member import Member
from training.joint.passes import Part, PartLoss, plan_passes, run_pass, shares_of
from training.methods import load_base
from training.run.course import memory_told, random_kept
from training.run.exact import precision_of
from training.run.prepare import LoadedBase, base_name
from training.run.record import base_digest
from training.run.result import RunResult, TrainingError
from training.spec import require

Results = dict[str, RunResult | Exception]


def run_together(
    base: str | Path,
    jobs: Sequence[JointJob],
    report: JointReport,
    stop: Callable[[], Collection[str]],
    most_tokens: int,
) -> Results:
    """See `training.joint.train_together`."""
    for what, values in (("id", [job.id for job in jobs]), ("folder", [str(job.folder) for job in jobs])):
        require(len({*values}) == len(values), f"two jobs have the same {what}")
    results: Results = {}
    groups: dict[tuple[str, str, bool], list[JointJob]] = {}
    for job in jobs:
        reason = can_join(job.spec)
        if reason is None:
            groups.setdefault(shares_base(job.spec), []).append(job)
        else:
            results[job.id] = ValueError(reason)
    for group in groups.values():
        results |= Together(base, group, report, stop, most_tokens).run()
    return {job.id: results[job.id] for job in jobs}


class Together:
    """Jobs on one copy of a base, from the first pass to the end of the last of them."""

    def __init__(
        self,
        base: str | Path,
        jobs: Sequence[JointJob],
        report: JointReport,
        stop: Callable[[], Collection[str]],
        most_tokens: int,
    ) -> None:
        self._jobs, self._report, self._stop, self._most = jobs, report, stop, most_tokens
        self._spec = jobs[0].spec
        self._model, tokenizer = load_base(base, self._spec)
        self._base = LoadedBase(base_name(base), base_digest(base, self._model), self._model, tokenizer)
        self._batch = TrainableBatch()
        self._members: dict[str, Member] = {}
        self._stopping: Collection[str] = ()
        self._results: Results = {}

    def run(self) -> Results:
        """Every job's result, or why it has none."""
        with random_kept():
            for job in self._jobs:
                with self._alone(job.id):
                    self._begin(job)
            for member in self._members.values():
                self._batch.attach(self._model, list(member.layers.adapter.deltas))
            self._model.train()
            for job_id, member in [*self._members.items()]:
                with self._alone(job_id):
                    self._chance = own_chance(self._model, self._spec.gradient_checkpointing)
                    member.start()
            self._remove_ended()
            while self._members:
                self._round()
        return self._results

    def _begin(self, job: JointJob) -> None:
        self._members[job.id] = Member(
            self._base, job, lambda event: self._report(job.id, event), lambda: job.id in self._stopping
        )

    def _round(self) -> None:
        """One part of each job, in as few passes as `most_tokens` allows."""
        self._stopping = self._stop()
        parts = [member.part() for member in self._members.values()]
        for group in plan_passes(parts, self._most):
            self._pass(group)
        self._remove_ended()

    def _pass(self, parts: Sequence[Part]) -> None:
        try:
            with memory_told(self._spec):
                done = self._forward_and_backward(parts)
        except TrainingError as error:
            self._make_room(parts, error)
            return
        for each in done:
            with self._alone(each.part.job):
                self._members[each.part.job].passed()

    def _forward_and_backward(self, parts: Sequence[Part]) -> list[PartLoss]:
        """The parts that have gradients now; a loss that is no number is left out of them."""
        good = []
        with self._batch.passing(*shares_of(parts)):
            with precision_of(self._spec, self._model.device):
                losses = run_pass(self._model, parts, self._chance)
            for each in losses:
                with self._alone(each.part.job):
                    self._members[each.part.job].add(float(each.loss.detach()), each.correct)
                    good.append(each)
            if good:
                torch.autograd.backward(torch.stack([each.loss for each in good]).sum())
        return good

    def _make_room(self, parts: Sequence[Part], error: TrainingError) -> None:
        """Memory ran out in a pass: from now on they are smaller. A job that was alone in it can't go on."""
        for part in parts:
            self._members[part.job].again()
        if len(parts) == 1:
            self._results[parts[0].job] = error
        else:
            self._most = sum(len(part.rows) for part in parts) * max(part.width for part in parts) // 2

    @contextmanager
    def _alone(self, job_id: str) -> Iterator[None]:
        """What goes wrong inside ends this job alone."""
        try:
            yield
        except Exception as error:  # whatever it is, it must not cost the others their runs
            self._results[job_id] = error

    def _remove_ended(self) -> None:
        for job_id, member in [*self._members.items()]:
            if member.result is not None:
                self._results[job_id] = member.result
            if job_id in self._results:
                member.close()
                del self._members[job_id]
