"""Names and colours of the classes of masks, as the files that data sets come with list them.

sky 128 128 128          one class a line: its name, and in colour-coded masks its colour
building,128,0,0         also with commas, with the colour first, with a header, or as CVAT's labelmap.txt
void                     pixels of a class of this name (or ignore, ignored, unlabelled, unlabeled) count nowhere
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FILES = ("classes.txt", "classes.csv", "class_dict.csv", "labelmap.txt", "label_colors.txt")
VOID = frozenset(["void", "ignore", "ignored", "unlabelled", "unlabeled"])
VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
Colour = tuple[int, int, int]

_NUMBERS = r"(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})"
_NAME_FIRST = re.compile(rf"(?P<name>.*?\S)[\s,;:]+{_NUMBERS}[\s,;:]*")
_COLOUR_FIRST = re.compile(rf"{_NUMBERS}[\s,;:]+(?P<name>\S.*)")
_HEADER = re.compile(r"(name|class|label)\w*[\s,;]+r(ed)?[\s,;]+g(reen)?[\s,;]+b(lue)?[\s,;]*", re.IGNORECASE)


@dataclass(frozen=True)
class ClassTable:
    """What the values of masks mean.

    Attributes:
        names: Of the values 0, 1, ...; of `VOID` ones pixels are ignored.
        colours: Of the same, or None.
    """

    names: tuple[str, ...]
    colours: tuple[Colour, ...] | None = None

    @property
    def kept(self) -> list[int]:
        """Values that are classes."""
        return [value for value, name in enumerate(self.names) if name.lower() not in VOID]


def find_table(folder: Path) -> ClassTable | None:
    """Read the class file of a folder of masks, or of the folder above, which splits share; None without one."""
    for place in (folder, folder.parent):
        for name in FILES:
            if (place / name).is_file():
                return read_table(place / name)
    return None


def read_table(path: Path) -> ClassTable:
    """Read a class file.

    Raises:
        ValueError: No line, a name twice, or colours for some classes only.
    """
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#") and not _HEADER.fullmatch(line)]
    names, colours = [], []
    for line in lines:
        match = _COLOUR_FIRST.fullmatch(line) or _NAME_FIRST.fullmatch(line)
        names.append(match["name"].strip() if match else line)
        colours.append(_colour(match) if match else None)
    known = [colour for colour in colours if colour is not None]
    if not names:
        raise ValueError(f"{path} is empty. It needs a class on each line: name, or name,red,green,blue.")
    if known and len(known) < len(names):
        raise ValueError(f"{path}: {names[colours.index(None)]!r} has no colour, others have. Give all or none.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: class {twice[0]!r} is there twice.")
    return ClassTable(tuple(names), tuple(known) or None)


def _colour(match: re.Match[str]) -> Colour:
    red, green, blue = (int(group) for group in match.groups() if group is not None and group.isdigit())
    return red, green, blue


def as_table(classes: Sequence[str] | str | Path | ClassTable) -> ClassTable:
    """Make a table of names, or read one."""
    if isinstance(classes, ClassTable):
        return classes
    return read_table(Path(classes)) if isinstance(classes, (str, Path)) else ClassTable(tuple(classes))


def palette(n: int) -> list[Colour]:
    """The first n colours of Pascal VOC, which differ well: bits of the number, highest first, by turns to R, G, B."""

    def channel(value: int, c: int) -> int:
        return sum(((value >> (3 * bit + c)) & 1) << (7 - bit) for bit in range(3))

    return [(channel(value, 0), channel(value, 1), channel(value, 2)) for value in range(n)]
