"""Checkpoints on disk, and the folder that they lie in: written whole or not at all, found again, never shared.

LOGS/{name}{YYYYmmddTHHMM}/mask_rcnn_{name}_{epoch:04d}.pth             after that many epochs
                           mask_rcnn_{name}_{epoch:04d}_{step:06d}.pth  that many batches into the next epoch
                           mask_rcnn_{name}_best.pth                    the best of those after an epoch
"""

import contextlib
import os
import re
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from weights.checkpoint import write_checkpoint

############################################################
#  Names
############################################################


class Position(NamedTuple):
    """How far a training has come. Tuples compare as positions do."""

    epoch: int  # completed
    step: int  # batches into the next


def checkpoint_path(log_dir: str | os.PathLike, name: str | None, epoch: int, step: int = 0) -> Path:
    """Where the checkpoint of a position belongs. name: config.NAME."""
    within = f"_{step:06d}" if step else ""
    return Path(log_dir) / f"mask_rcnn_{_lower(name)}_{epoch:04d}{within}.pth"


def best_path(log_dir: str | os.PathLike, name: str | None) -> Path:
    """Where the best checkpoint belongs."""
    return Path(log_dir) / f"mask_rcnn_{_lower(name)}_best.pth"


def list_checkpoints(log_dir: str | os.PathLike, name: str | None) -> dict[Position, Path]:
    """The checkpoints in a log folder, oldest first; without the best one, which is one of them or was."""
    pattern = re.compile(rf"mask_rcnn_{re.escape(_lower(name))}_(\d+)(?:_(\d+))?\.pth")
    found = {
        Position(int(match[1]), int(match[2] or 0)): path
        for path in Path(log_dir).glob("*.pth")
        if (match := pattern.fullmatch(path.name))
    }
    return dict(sorted(found.items()))


def find_last(model_dir: str | os.PathLike, name: str | None) -> Path:
    """The newest checkpoint: the furthest one in the newest log folder that has any.

    model_dir: the folder of log folders. name: config.NAME.

    Raises: FileNotFoundError when there is none.
    """
    model_dir, name = Path(model_dir), _lower(name)
    folders = sorted(model_dir.glob(f"{name}*"), reverse=True) if model_dir.is_dir() else []
    for folder in folders:
        if re.fullmatch(rf"{re.escape(name)}\d*T?\d*", folder.name) and (found := list_checkpoints(folder, name)):
            return found[max(found)]
    raise FileNotFoundError(
        f"there is no checkpoint mask_rcnn_{name}_*.pth in any folder {model_dir / name}*; train first, or name a file"
    )


def make_log_dir(model_dir: str | os.PathLike, name: str | None) -> Path:
    """A new log folder, called after the experiment and the time."""
    now = datetime.now()
    for form in ("%Y%m%dT%H%M", "%Y%m%dT%H%M%S", "%Y%m%dT%H%M%S%f"):  # another may have begun in the same minute
        log_dir = Path(model_dir) / f"{_lower(name)}{now.strftime(form)}"
        with contextlib.suppress(FileExistsError):
            log_dir.mkdir(parents=True)
            break
    return log_dir


def _lower(name: str | None) -> str:
    return (name or "").lower()


############################################################
#  Files
############################################################


def save_checkpoint(path: Path, contents: Mapping[str, Any]) -> None:
    """Write a checkpoint of a training, complete or not at all. Its folder must exist.

    Raises: OSError that names the file and the room that it needs, if the disk refuses; older checkpoints stay.
    """
    try:
        write_checkpoint(path, contents)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror or error}. Earlier checkpoints are intact; make room and continue from the last one "
            "(--model=last), or keep fewer of them (CHECKPOINTS_KEPT)",
        ) from error


def keep_as_best(path: Path, best: Path) -> None:
    """Make best the same file as path, which is never changed afterwards; a copy where the file system has no links."""
    temporary = best.with_name(f".{best.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
        os.replace(temporary, best)
    finally:
        temporary.unlink(missing_ok=True)


def prune_checkpoints(log_dir: Path, name: str | None, kept: int) -> None:
    """Delete all but the last checkpoints, and what writers that were killed left behind."""
    for path in list(list_checkpoints(log_dir, name).values())[:-kept]:
        path.unlink(missing_ok=True)
    for path in log_dir.glob(f".mask_rcnn_{_lower(name)}_*.tmp"):
        path.unlink(missing_ok=True)


def set_aside_later(log_dir: Path, name: str | None, position: Position) -> list[Path]:
    """Rename the checkpoints beyond a position that is continued from: they belong to another continuation.

    Returns: their new paths, NAME.pth.superseded.
    """
    moved = []
    for other, path in list_checkpoints(log_dir, name).items():
        if other > position:
            moved.append(path.replace(path.with_name(f"{path.name}.superseded")))
    return moved
