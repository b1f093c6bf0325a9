"""The files of checkpoints: their names and folders, writing them whole or not at all, and deleting old ones.

LOGS/{name}{YYYYmmddTHHMM}/mask_rcnn_{name}_{epoch:04d}.pth             after that many epochs
                           mask_rcnn_{name}_{epoch:04d}_{step:06d}.pth  that many batches into the next epoch
                           mask_rcnn_{name}_best.pth                    the best one after a whole epoch
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
    """How far a training has come. A later position is the greater tuple."""

    epoch: int  # completed epochs
    step: int  # batches of the next epoch that are done


def checkpoint_path(log_dir: str | os.PathLike, name: str | None, epoch: int, step: int = 0) -> Path:
    """The path of a position's checkpoint. name: config.NAME."""
    within = f"_{step:06d}" if step else ""
    return Path(log_dir) / f"mask_rcnn_{_lower(name)}_{epoch:04d}{within}.pth"


def best_path(log_dir: str | os.PathLike, name: str | None) -> Path:
    """The path of the best checkpoint."""
    return Path(log_dir) / f"mask_rcnn_{_lower(name)}_best.pth"


def list_checkpoints(log_dir: str | os.PathLike, name: str | None) -> dict[Position, Path]:
    """The checkpoints in a log folder, oldest first, without the best one: that is a second name of one of them."""
    pattern = re.compile(rf"mask_rcnn_{re.escape(_lower(name))}_(\d+)(?:_(\d+))?\.pth")
    paths = {
        Position(int(match[1]), int(match[2] or 0)): path
        for path in Path(log_dir).glob("*.pth")
        if (match := pattern.fullmatch(path.name))
    }
    return dict(sorted(paths.items()))


def find_last(model_dir: str | os.PathLike, name: str | None) -> Path:
    """The newest checkpoint: the furthest one in the newest log folder that has any.

    model_dir: the folder of log folders. name: config.NAME.

    Raises: FileNotFoundError when there is none.
    """
    model_dir, name = Path(model_dir), _lower(name)
    folders = sorted(model_dir.glob(f"{name}*"), reverse=True) if model_dir.is_dir() else []
    for folder in folders:
        if re.fullmatch(rf"{re.escape(name)}\d*T?\d*", folder.name):
            paths = list_checkpoints(folder, name)
            if paths:
                return paths[max(paths)]
    raise FileNotFoundError(
        f"there is no checkpoint mask_rcnn_{name}_*.pth in any folder {model_dir / name}*; train first, or name a file"
    )


def make_log_dir(model_dir: str | os.PathLike, name: str | None) -> Path:
    """Make a new log folder, named after the experiment and the time."""
    now = datetime.now()
    for form in ("%Y%m%dT%H%M", "%Y%m%dT%H%M%S", "%Y%m%dT%H%M%S%f"):  # another training may have this minute's name
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
    """Let best be a second name (a hard link) of the file at path, or a copy where the file system has no links."""
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
    """Delete all but the last `kept` checkpoints, and unfinished files of processes that were killed."""
    for path in list(list_checkpoints(log_dir, name).values())[:-kept]:
        path.unlink(missing_ok=True)
    for path in log_dir.glob(f".mask_rcnn_{_lower(name)}_*.tmp"):
        path.unlink(missing_ok=True)


def set_aside_later(log_dir: Path, name: str | None, position: Position) -> list[Path]:
    """Rename the checkpoints beyond the position that a training continues from: another continuation wrote them.

    Returns: their new paths, NAME.pth.superseded.
    """
    moved = []
    for other, path in list_checkpoints(log_dir, name).items():
        if other > position:
            moved.append(path.replace(path.with_name(f"{path.name}.superseded")))
    return moved
