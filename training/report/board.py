"""The curves of a run as TensorBoard event files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.events import Advised, Evaluated, Event, Finished, Progress, Sample, Saved, Started


class TensorBoardLog:
    """Writes what a run tells into a folder that `tensorboard --logdir` reads; a `Report`.

    A run that goes on from a checkpoint adds a file, which says from where on the older ones are void.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def __call__(self, event: Event) -> None:
        match event:
            case Started():
                self._open(event.resumed_from)
            case Progress():
                self._progress(event)
            case Evaluated():
                self._evaluated(event)
            case Advised():
                self._write().add_text(f"advice/{event.kind}", event.message, event.step)
            case Saved():
                self._write().flush()  # a resume goes on from here: what is before it must be on disk
            case Finished():
                self.close()

    def close(self) -> None:
        """All that was told is on disk."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, resumed_from: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        void_from = resumed_from + 1 if resumed_from else None
        self._writer = SummaryWriter(str(self._folder), purge_step=void_from)

    def _write(self) -> Any:
        if self._writer is None:
            self._open(0)
        return self._writer

    def _progress(self, event: Progress) -> None:
        self._scalars(
            event.step,
            {
                "train/loss": event.loss,
                "train/token_accuracy": event.token_accuracy,
                "train/learning_rate": event.learning_rate,
                "train/gradient_norm": event.gradient_norm,
                "train/tokens_per_second": event.tokens_per_second,
                "train/trained_tokens": event.trained_tokens,
            },
        )

    def _evaluated(self, event: Evaluated) -> None:
        self._scalars(
            event.step,
            {
                "validation/loss": event.loss,
                "validation/token_accuracy": event.token_accuracy,
                f"validation/{event.metric}": event.score,
                **{f"validation/{name}": score for name, score in event.scores.items()},
            },
        )
        for number, sample in enumerate(event.samples, start=1):
            self._write().add_text(f"samples/{number}", _as_markdown(sample), event.step)
        self._write().flush()

    def _scalars(self, step: int, values: dict[str, float | None]) -> None:
        for tag, value in values.items():
            if value is not None:
                self._write().add_scalar(tag, value, step)


def _as_markdown(sample: Sample) -> str:
    """TensorBoard shows text as Markdown, in which four spaces keep all as it is."""
    parts = {"prompt": sample.prompt, "wanted": sample.wanted, "answer": sample.answer}
    return "\n\n".join(f"{name}:\n\n" + _indented(text) for name, text in parts.items())


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])
