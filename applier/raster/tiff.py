"""The head of a TIFF file, as bytes: what its first directory says, and how to write one.

A TIFF file is a directory of tagged values, and chunks (tiles or strips) of pixels to which two of those
values point: an offset and a length for each chunk. GDAL can therefore compress chunks in one place, and
they can be put into a file in another: take the directory of an empty file that GDAL made, and fill in the
real offsets. Nothing here knows compression, georeference or bands; these are values copied as they are.

Classic TIFF (32-bit offsets) and BigTIFF (64-bit), little and big endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ASCII", "LONG", "CLASSIC_LIMIT", "Entry", "TiffDirectory", "build", "head_size", "parse"]

#: Bytes that a classic TIFF file can have: its offsets are 32-bit.
CLASSIC_LIMIT = 2**32 - 1

ASCII, LONG = 2, 4
_LONG8 = 16
# Bytes of one item, by type code.
_TYPE_SIZE = {
    **dict.fromkeys((1, 2, 6, 7), 1),
    **dict.fromkeys((3, 8), 2),
    **dict.fromkeys((4, 9, 11, 13), 4),
    **dict.fromkeys((5, 10, 12, 16, 17, 18), 8),
}
_INTEGER_CODE = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}

IMAGE_WIDTH, IMAGE_LENGTH, ROWS_PER_STRIP, PLANAR_CONFIG, SAMPLES_PER_PIXEL = 256, 257, 278, 284, 277
TILE_WIDTH, TILE_LENGTH = 322, 323
STRIP_OFFSETS, STRIP_BYTE_COUNTS = 273, 279
TILE_OFFSETS, TILE_BYTE_COUNTS = 324, 325


class Entry(NamedTuple):
    """One value of a directory: TIFF type code, number of items, and their bytes in the file's order."""

    type_code: int
    n_items: int
    raw: bytes


@dataclass(frozen=True)
class TiffDirectory:
    """The first directory of a TIFF file.

    Attributes
    ----------
    byte_order : {'<', '>'}
        Little or big endian.
    big : bool
        Whether the file is BigTIFF.
    entries : dict of int to Entry
        By tag.
    """

    byte_order: str
    big: bool
    entries: dict[int, Entry]

    def integers(self, tag: int) -> NDArray[np.unsignedinteger[Any]]:
        """Return the items of an unsigned integer tag.

        Parameters
        ----------
        tag : int

        Returns
        -------
        numpy.ndarray
            1-D.

        Raises
        ------
        ValueError
            If the tag is missing or not of an unsigned integer type.
        """
        entry = self.entries.get(tag)
        if entry is None or entry.type_code not in _INTEGER_CODE:
            raise ValueError(f"TIFF tag {tag} is missing or not made of unsigned integers")
        return np.frombuffer(entry.raw, self.byte_order + _INTEGER_CODE[entry.type_code])

    def integer(self, tag: int, default: int | None = None) -> int:
        """Return an unsigned integer tag's first item, or `default` where the tag is missing.

        Parameters
        ----------
        tag : int
        default : int, optional

        Returns
        -------
        int

        Raises
        ------
        ValueError
            If it is missing and there is no default, or if it is no unsigned integer.
        """
        if tag not in self.entries and default is not None:
            return default
        values = self.integers(tag)
        if not len(values):
            raise ValueError(f"TIFF tag {tag} is empty")
        return int(values[0])

    @property
    def tiled(self) -> bool:
        """Whether the chunks are tiles; else they are strips, as wide as the image."""
        return TILE_WIDTH in self.entries

    @property
    def chunk_shape(self) -> tuple[int, int]:
        """(rows, cols) of a full chunk, in pixels."""
        if self.tiled:
            shape = self.integer(TILE_LENGTH), self.integer(TILE_WIDTH)
        else:
            height = self.integer(IMAGE_LENGTH)
            shape = min(self.integer(ROWS_PER_STRIP, height), height), self.integer(IMAGE_WIDTH)
        if min(shape) < 1:
            raise ValueError(f"TIFF file with chunks of {shape[0]} x {shape[1]} pixels")
        return shape

    @property
    def chunk_grid(self) -> tuple[int, int, int]:
        """(planes, rows, cols) of chunks; more than one plane where bands are separate."""
        chunk_height, chunk_width = self.chunk_shape
        planes = self.integer(SAMPLES_PER_PIXEL, 1) if self.integer(PLANAR_CONFIG, 1) == 2 else 1
        rows = -(-self.integer(IMAGE_LENGTH) // chunk_height)
        cols = -(-self.integer(IMAGE_WIDTH) // chunk_width)
        return planes, rows, cols

    def chunks(self) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.unsignedinteger[Any]]]:
        """Return where the chunks are.

        Returns
        -------
        offsets, byte_counts : numpy.ndarray
            1-D, plane by plane, each row by row; 0 and 0 for a chunk that was never written.

        Raises
        ------
        ValueError
            If their number does not fit the size of the image.
        """
        offsets = self.integers(TILE_OFFSETS if self.tiled else STRIP_OFFSETS)
        byte_counts = self.integers(TILE_BYTE_COUNTS if self.tiled else STRIP_BYTE_COUNTS)
        planes, rows, cols = self.chunk_grid
        if not len(offsets) == len(byte_counts) == planes * rows * cols:
            raise ValueError(
                f"TIFF file with {len(offsets)} offsets and {len(byte_counts)} lengths for "
                f"{planes * rows * cols} chunks"
            )
        return offsets, byte_counts

    def with_value(self, tag: int, value: int | str) -> TiffDirectory:
        """Return a copy in which one tag has another value.

        Parameters
        ----------
        tag : int
        value : int or str
            Stored as one LONG, or as ASCII text.

        Returns
        -------
        TiffDirectory
        """
        if isinstance(value, str):
            raw = value.encode("ascii") + b"\0"
            entry = Entry(ASCII, len(raw), raw)
        else:
            entry = Entry(LONG, 1, struct.pack(self.byte_order + "L", value))
        return replace(self, entries={**self.entries, tag: entry})


def parse(buffer: Any) -> TiffDirectory:
    """Read the first directory of a TIFF file.

    Parameters
    ----------
    buffer : bytes-like
        The file from its first byte on; at least as far as the values of its first directory go.

    Returns
    -------
    TiffDirectory

    Raises
    ------
    ValueError
        If this is not a TIFF file, or if it points outside the buffer.

    Examples
    --------
    >>> directory = TiffDirectory("<", False, {}).with_value(256, 10).with_value(257, 20).with_value(278, 20)
    >>> parse(build(directory, [8], [200])).chunk_shape
    (20, 10)
    """
    view = memoryview(buffer).cast("B")
    byte_order = {b"II": "<", b"MM": ">"}.get(bytes(view[:2]))
    if byte_order is None:
        raise ValueError("not a TIFF file: it begins with neither II nor MM")

    def unpack(code: str, offset: int) -> tuple[Any, ...]:
        try:
            return struct.unpack_from(byte_order + code, view, offset)
        except struct.error:
            raise ValueError(f"TIFF file of {len(view)} bytes is cut short: no {code} at {offset}") from None

    (version,) = unpack("H", 2)
    if version == 42:
        big = False
        (start,) = unpack("L", 4)
        (n_entries,) = unpack("H", start)
        start += 2
    elif version == 43:
        big = True
        offset_size, zero, start = unpack("HHQ", 4)
        if (offset_size, zero) != (8, 0):
            raise ValueError("BigTIFF file whose offsets are not 8 bytes")
        (n_entries,) = unpack("Q", start)
        start += 8
    else:
        raise ValueError(f"not a TIFF file: version {version}")
    entry_code, entry_size, inline, pointer = ("HHQ", 20, 8, "Q") if big else ("HHL", 12, 4, "L")
    if start + n_entries * entry_size > len(view):
        raise ValueError(f"TIFF file of {len(view)} bytes is cut short in its {n_entries} tags")
    entries = {}
    for position in range(start, start + n_entries * entry_size, entry_size):
        tag, type_code, count = unpack(entry_code, position)
        if type_code not in _TYPE_SIZE:
            raise ValueError(f"TIFF tag {tag} has the unknown type {type_code}")
        size = _TYPE_SIZE[type_code] * count
        at = position + entry_size - inline
        if size > inline:
            (at,) = unpack(pointer, at)
        if at + size > len(view):
            raise ValueError(f"TIFF file of {len(view)} bytes is cut short in the value of tag {tag}")
        entries[tag] = Entry(type_code, count, bytes(view[at : at + size]))
    return TiffDirectory(byte_order, big, entries)


def head_size(directory: TiffDirectory, n_chunks: int) -> int:
    """Return how many bytes `build` gives for this many chunks, so that chunks can be written before it.

    Parameters
    ----------
    directory : TiffDirectory
    n_chunks : int
        Chunks of all planes together.

    Returns
    -------
    int
    """
    return _place(directory, _sizes(directory, n_chunks))[1]


def build(
    directory: TiffDirectory,
    offsets: Sequence[int] | NDArray[np.unsignedinteger[Any]],
    byte_counts: Sequence[int] | NDArray[np.unsignedinteger[Any]],
) -> bytes:
    """Return the first bytes of a TIFF file: header, directory, values, and where the chunks are.

    Parameters
    ----------
    directory : TiffDirectory
        All other values; offsets and lengths of chunks in it are not used.
    offsets, byte_counts : sequence of int or numpy.ndarray
        Of each chunk, plane by plane, each row by row; 0 and 0 for a chunk that is left out.

    Returns
    -------
    bytes
        Of length `head_size`.

    Raises
    ------
    ValueError
        If an offset does not fit into a classic TIFF file.
    """
    code = directory.byte_order + ("u8" if directory.big else "u4")
    places = np.asarray(offsets, "u8")
    lengths = np.asarray(byte_counts, "u8")
    if not directory.big and len(places) and int((places + lengths).max()) > CLASSIC_LIMIT:
        raise ValueError("a classic TIFF file cannot have more than 4 GiB, BigTIFF is needed")
    item_type = _LONG8 if directory.big else LONG
    offsets_tag, byte_counts_tag = _chunk_tags(directory)
    entries = dict(directory.entries)
    entries[offsets_tag] = Entry(item_type, len(places), places.astype(code).tobytes())
    entries[byte_counts_tag] = Entry(item_type, len(lengths), lengths.astype(code).tobytes())

    where, _ = _place(directory, {tag: len(entry.raw) for tag, entry in entries.items()})
    order = directory.byte_order
    if directory.big:
        head = struct.pack(order + "2sHHHQQ", _mark(order), 43, 8, 0, 16, len(entries))
    else:
        head = struct.pack(order + "2sHLH", _mark(order), 42, 8, len(entries))
    parts, values = [head], []
    end = 0
    inline, pointer, entry_code = (8, "Q", "HHQ") if directory.big else (4, "L", "HHL")
    for tag, entry in sorted(entries.items()):
        parts.append(struct.pack(order + entry_code, tag, entry.type_code, entry.n_items))
        if len(entry.raw) <= inline:
            parts.append(entry.raw.ljust(inline, b"\0"))
        else:
            parts.append(struct.pack(order + pointer, where[tag]))
            values.append((where[tag], entry.raw))
    parts.append(struct.pack(order + pointer, 0))  # no further directory
    end = sum(map(len, parts))
    for position, raw in sorted(values):
        parts += [b"\0" * (position - end), raw]
        end = position + len(raw)
    return b"".join(parts)


def _chunk_tags(directory: TiffDirectory) -> tuple[int, int]:
    return (TILE_OFFSETS, TILE_BYTE_COUNTS) if directory.tiled else (STRIP_OFFSETS, STRIP_BYTE_COUNTS)


def _mark(byte_order: str) -> bytes:
    return b"II" if byte_order == "<" else b"MM"


def _sizes(directory: TiffDirectory, n_chunks: int) -> dict[int, int]:
    """Bytes of each value when there are `n_chunks` chunks."""
    sizes = {tag: len(entry.raw) for tag, entry in directory.entries.items()}
    for tag in _chunk_tags(directory):
        sizes[tag] = n_chunks * (8 if directory.big else 4)
    return sizes


def _place(directory: TiffDirectory, sizes: dict[int, int]) -> tuple[dict[int, int], int]:
    """Where each value that does not fit into its entry goes, and where they end."""
    if directory.big:
        end, inline = 16 + 8 + 20 * len(sizes) + 8, 8
    else:
        end, inline = 8 + 2 + 12 * len(sizes) + 4, 4
    where = {}
    for tag in sorted(sizes):
        if sizes[tag] > inline:
            end += -end % 8
            where[tag] = end
            end += sizes[tag]
    return where, end
