"""Training of any module that returns a dict of losses: data, the loop, checkpoints, logs."""

from .checkpoints import (
    Position,
    best_path,
    checkpoint_path,
    find_last,
    git_revision,
    list_checkpoints,
    locked_folder,
    make_log_dir,
)
from .data import Batch, BatchOrder, Loader, Sample, TrainingData, collate, make_loader
from .distributed import close_distributed, rank, setup_distributed, world_mean, world_size
from .logs import ProgressLine, Recorder, Watchdog, draw_curves, peak_memory_mb, read_records
from .loop import Progress, train
from .optimizer import (
    SCHEDULES,
    Stage,
    learning_rate_at,
    make_optimizer,
    schedule_learning_rate,
    set_learning_rate,
)

__all__ = [
    "SCHEDULES",
    "Batch",
    "BatchOrder",
    "Loader",
    "Position",
    "Progress",
    "ProgressLine",
    "Recorder",
    "Sample",
    "Stage",
    "TrainingData",
    "Watchdog",
    "best_path",
    "checkpoint_path",
    "close_distributed",
    "collate",
    "draw_curves",
    "find_last",
    "git_revision",
    "learning_rate_at",
    "list_checkpoints",
    "locked_folder",
    "make_loader",
    "make_log_dir",
    "make_optimizer",
    "peak_memory_mb",
    "rank",
    "read_records",
    "schedule_learning_rate",
    "set_learning_rate",
    "setup_distributed",
    "train",
    "world_mean",
    "world_size",
]
