"""A run: from examples to an adapter folder, stopped and gone on with at any step without a trace."""

from training.run.order import Order
from training.run.result import RunResult, TrainingData, TrainingError
from training.run.run import ignore, never, train

__all__ = ["Order", "RunResult", "TrainingData", "TrainingError", "ignore", "never", "train"]
