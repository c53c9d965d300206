"""MATLAB files, read so that whatever is wrong with one becomes a sentence with the file and the field in it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def read_mat(path: Path, fields: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
    """The named variables of a file of MATLAB 4 to 7.2, each with at least two dimensions as MATLAB has them.

    Raises:
        ValueError: the file cannot be read, or lacks a field.
    """
    from scipy.io import loadmat  # here because it takes a quarter of a second, and few datasets need it

    names = tuple(fields)
    try:
        found = loadmat(path, variable_names=names, appendmat=False)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}; check the key 'annotations'") from None
    except NotImplementedError:
        raise ValueError(f"{path} is of MATLAB 7.3; save it with save(..., '-v7')") from None
    except Exception as error:  # a damaged file makes scipy raise about anything
        raise ValueError(f"{path} is not a MATLAB file, or is damaged ({error}); get it anew") from None
    for name in names:
        if name not in found:
            raise ValueError(f"{path} has no field {name!r}; get the file anew from the dataset's archive")
    return {name: found[name] for name in names}


def whole_number(value: npt.NDArray[Any], *, name: str, where: str) -> int:
    """The one integer that an array holds; MATLAB often stores it as a float or as a byte.

    Args:
        value: as ``read_mat`` gives it.
        name: of the field, for the message.
        where: file, and what of it, for the message.

    Raises:
        ValueError: it holds anything else.
    """
    if value.size != 1 or value.dtype.kind not in "buif" or value.item() != value.item() // 1:
        raise ValueError(f"{where} has {_short(value)} for {name!r}; it must be one whole number")
    return int(value.item())


def text(value: npt.NDArray[Any], *, name: str, where: str) -> str:
    """The text that an array holds. Arguments as of ``whole_number``.

    Raises:
        ValueError: it holds no text, or an empty one.
    """
    if value.size != 1 or value.dtype.kind != "U" or not value.item().strip():
        raise ValueError(f"{where} has {_short(value)} for {name!r}; it must be a text")
    return str(value.item()).strip()


def number_table(value: npt.NDArray[Any], *, columns: int, name: str, where: str) -> npt.NDArray[np.float64]:
    """The rows of numbers that an array holds, as float64: MATLAB packs boxes as bytes, whose sums would overflow.

    Args:
        value: as ``read_mat`` gives it.
        columns: that it must have.
        name: of the field, for the message.
        where: file, and what of it, for the message.

    Raises:
        ValueError: it holds anything else.
    """
    if value.ndim != 2 or value.shape[1] != columns or value.dtype.kind not in "uif":
        raise ValueError(
            f"{where} has an array of shape {value.shape} and type {value.dtype} for {name!r};"
            f" it must be numbers in {columns} columns"
        )
    return value.astype(np.float64)


def _short(value: npt.NDArray[Any]) -> str:
    return repr(value.item()) if value.size == 1 else f"an array of shape {value.shape}"
