"""Checks the class folders of a dataset: their names, and whether they are classes at all."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from enum import Enum, auto

from multigrain.data.listing import Listing
from multigrain.errors import ErrorKind, MultigrainError, shorten
from multigrain.text import is_text, normalize, printable

Found = Sequence[tuple[str, Listing]]

# Words in the names of a dataset's parts: "seg_train", "training set", "val2017", "trainA".
_TRAIN = frozenset({"train", "training", "trainval", "trn", "trainset", "trainingset"})
_HELD_OUT = frozenset(
    {
        *("val", "valid", "validate", "validation", "valset", "validset", "validationset"),
        *("test", "testing", "testset", "tst", "dev", "devel", "eval", "evaluation", "holdout"),
    }
)
_OTHER_PART = frozenset(
    {
        *("fold", "folds", "split", "splits", "unlabeled", "unlabelled", "unsup", "unsupervised"),
        *("extra", "extras", "minival", "testdev"),
    }
)
# Words beside them that say nothing of what is in the images.
_PLAIN = frozenset(
    {
        *("set", "sets", "data", "dataset", "image", "images", "img", "imgs", "folder", "split"),
        *("seg", "a", "b", "c", "d", "original", "raw", "small", "full", "final", "new", "ds"),
    }
)
_LETTERS = re.compile(r"[^\W\d_]+")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")

# A black flag and the tag characters that make it the flag of a region.
_FLAG = re.compile("\U0001f3f4[\U000e0020-\U000e007f]+")
_JOINERS = "\u200c\u200d"


class _Part(Enum):
    TRAIN = auto()
    HELD_OUT = auto()
    OTHER = auto()


def quoted(names: Sequence[str], limit: int = 5) -> str:
    """The first names, in quotes."""
    return shorten([f"'{printable(name)}'" for name in names], limit)


def check_layout(root: str, found: Found) -> None:
    """Checks the class folders of a dataset.

    Args:
        root: the dataset, printable.
        found: name and images of each class folder.

    Raises:
        MultigrainError: DATASET, if a name is not plain text, or the folders are the parts of a
            dataset.
    """
    _check_names(root, [name for name, _ in found])
    _check_parts(root, found)


def layout_warning(root: str, found: Found) -> str:
    """What is unusual about class folders that are accepted; "" if nothing is."""
    warnings = (_parts_warning(root, found), _names_warning([name for name, _ in found]))
    return "; ".join(filter(None, warnings))


def _check_names(root: str, names: list[str]) -> None:
    """Refuses class names that are not text, and those that only look different to a program."""
    wrong = [name for name in names if not is_text(name)]
    if wrong:
        # They would become class names, which checkpoints and messages hold as UTF-8.
        raise MultigrainError(
            ErrorKind.DATASET,
            f"the dataset {root} has class folders whose names are not UTF-8: {quoted(wrong)}; "
            "rename them",
        )
    # Class names are written into checkpoints, tables and plots, and are shown in terminals.
    wrong = [name for name in names if _has_invisible(name)]
    if wrong:
        shown = shorten([f"'{_escaped(name)}'" for name in wrong], 5)
        raise MultigrainError(
            ErrorKind.DATASET,
            f"the dataset {root} has class folders with control characters or invisible "
            f"characters in their names: {shown}; rename them",
        )
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(normalize(name), name)
        if other is not name:
            raise MultigrainError(
                ErrorKind.DATASET,
                f"the dataset {root} has two class folders of the same name {printable(name)!r} in "
                f"two Unicode forms, {other!a} and {name!a}: merge or rename them",
            )


def _has_invisible(name: str) -> bool:
    """Whether a name has characters that a terminal must not get or nobody can see.

    Joiners between letters are needed by Persian, Hindi and emoji.
    """
    name = _FLAG.sub("", name)
    return printable(name) != name or name != name.strip(_JOINERS)


def _escaped(name: str) -> str:
    """The name on one line, with joiners at its ends escaped too."""
    inner = name.strip(_JOINERS)
    begin = name.index(inner) if inner else 0
    ends = [name[:begin], name[begin + len(inner) :]] if inner else [name, ""]
    before, after = ("".join(f"\\u{ord(character):04x}" for character in end) for end in ends)
    return f"{before}{printable(inner)}{after}"


def _names_warning(names: list[str]) -> str:
    """Names that look the same: in upper and lower case, with spaces around, in full width."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_look(name), []).append(name)
    pairs = [same for same in alike.values() if len(same) > 1]
    if not pairs:
        return ""
    shown = shorten([" and ".join(f"'{printable(name)}'" for name in same) for same in pairs], 3)
    return f"these class folders have almost the same name: {shown}; merge them if they are one"


def _look(name: str) -> str:
    if name.isascii():
        return " ".join(name.lower().split())
    folded = unicodedata.normalize("NFKC", name).casefold()
    visible = "".join(c for c in folded if unicodedata.category(c) != "Cf")
    return " ".join(unicodedata.normalize("NFKC", visible).split())


def _words(name: str) -> list[str]:
    found: list[str] = []
    for letters in _LETTERS.findall(name):
        found += _WORD.findall(letters) if letters.isascii() else [letters]
    return [word.lower() for word in found]


def _part(name: str) -> tuple[_Part | None, tuple[str, ...]]:
    """The part of a dataset that a name speaks of, and the other words of the name."""
    name_words = tuple(_words(name))
    for part, known in (
        (_Part.TRAIN, _TRAIN),
        (_Part.HELD_OUT, _HELD_OUT),
        (_Part.OTHER, _OTHER_PART),
    ):
        others = tuple(word for word in name_words if word not in known)
        if len(others) < len(name_words):
            return part, others
    return None, name_words


def _is_part(name: str) -> bool:
    """Whether a name says nothing but which part of a dataset it is: not "bullet_train"."""
    part, others = _part(name)
    return part is not None and all(word in _PLAIN or len(word) == 1 for word in others)


def _holds_folders_only(listing: Listing) -> bool:
    return bool(listing.paths) and not listing.direct


def _holds_folders(listing: Listing) -> bool:
    return any(path.count("/") > 1 for path in listing.paths)


def _check_parts(root: str, found: Found) -> None:
    """Refuses a dataset whose classes are its parts for training and validation."""
    # In ImageNet the validation and test images are not in folders of classes.
    if not _are_named_parts(found) and not _are_a_pair(found):
        return
    named = [(name, listing) for name, listing in found if listing.paths and _part(name)[0]]
    best = _best(named)
    raise MultigrainError(
        ErrorKind.DATASET,
        f"the dataset {root} has no class folders but the parts "
        f"{quoted([name for name, _ in named])} of a dataset: did you mean "
        f"{root.rstrip('/')}/{printable(best)}?",
    )


def _are_named_parts(found: Found) -> bool:
    """Whether all folders are named like parts, at least one for training or evaluation, and one
    holds folders only."""
    filled = [(name, listing) for name, listing in found if listing.paths]
    if not filled or not all(_is_part(name) for name, _ in filled):
        return False
    parts = {_part(name)[0] for name, _ in filled}
    if not any(_holds_folders_only(listing) for _, listing in filled):
        return False
    # Several parts of one kind may be classes of one letter or number: "train 1", "train 2".
    return {_Part.TRAIN, _Part.HELD_OUT} <= parts or all(
        not _part(name)[1] and _Part.OTHER not in parts and not _numbered(name)
        for name, _ in filled
    )


def _numbered(name: str) -> bool:
    """Whether a name has a number that is no year, as those of COCO have ("val2017")."""
    return any(re.fullmatch(r"20\d\d", number) is None for number in re.findall(r"\d+", name))


def _are_a_pair(found: Found) -> bool:
    """Whether a part for training and one for evaluation hold folders and differ in that word.

    "seg_train" and "seg_test" do; classes such as "bullet_train" and "test_tube" do not.
    """
    sides: dict[_Part, dict[tuple[str, ...], list[Listing]]] = {}
    for name, listing in found:
        part, others = _part(name)
        if part is not None and _holds_folders(listing):
            sides.setdefault(part, {}).setdefault(others, []).append(listing)
    train, held = sides.get(_Part.TRAIN, {}), sides.get(_Part.HELD_OUT, {})
    return any(
        _holds_folders_only(listing)
        for others in train.keys() & held.keys()
        for listing in train[others] + held[others]
    )


def _best(named: Found) -> str:
    """The part that the user means: one for training, if there is one."""

    def rank(item: tuple[str, Listing]) -> tuple[bool, bool, bool, bool, str]:
        name, listing = item
        return (
            _part(name)[0] is not _Part.TRAIN,
            not _holds_folders(listing),
            not name.lower().startswith("train"),
            # "train" before "trainval", "unlabeled" last.
            _part(name)[0] is _Part.OTHER,
            name,
        )

    return min(named, key=rank)[0]


def _parts_warning(root: str, found: Found) -> str:
    parts = [(name, listing) for name, listing in found if _is_part(name)]
    suspect = [name for name, listing in parts if _holds_folders_only(listing)]
    if len(parts) == len(found) or suspect:
        names = [name for name, _ in parts] if len(parts) == len(found) else suspect
        return (
            f"the class folders {quoted(names)} are named like the parts of a dataset, not like "
            f"classes{_inside(root, names, found)}"
        )
    if not all(_holds_folders_only(listing) for _, listing in found):
        return ""
    name, listing = found[0]
    inside = quoted(listing.folders, 3)
    if len(found) == 1:
        inner = listing.folders
        if inner and all(_is_part(part) for part in inner):
            best = min(inner, key=lambda part: (_part(part)[0] is not _Part.TRAIN, part))
            return (
                f"the only class folder {quoted([name])} holds the parts of a dataset ({inside}): "
                f"did you mean {root.rstrip('/')}/{printable(name)}/{printable(best)}?"
            )
        return (
            f"the only class folder {quoted([name])} holds folders only ({inside}): if these are "
            f"the classes, give {root.rstrip('/')}/{printable(name)}"
        )
    return (
        f"all {len(found)} class folders hold folders only ({quoted([name])}: {inside}): if those "
        "are the classes, give the folder right above them"
    )


def _inside(root: str, names: Iterable[str], found: Found) -> str:
    """What to give instead, if one of the folders holds folders only."""
    chosen = set(names)
    nested = [
        (name, listing)
        for name, listing in found
        if name in chosen and _holds_folders_only(listing)
    ]
    if not nested:
        return ""
    best = _best(nested)
    inside = quoted(dict(nested)[best].folders, 3)
    return (
        f": if the folders in them are the classes ('{printable(best)}': {inside}), give "
        f"{root.rstrip('/')}/{printable(best)}"
    )
