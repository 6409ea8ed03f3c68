"""What the user must know of folders: those that are no classes, images outside of them, names that merge."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from omma.core.words import count

Path = tuple[str, ...]  # names of folders below the source
Counts = Mapping[Path, int]  # images directly in each folder
# folders that tell files apart and no classes
FOLD = re.compile(r"(?:fold|cv|split|part|batch|chunk|shard)[-_ ]?\d+", re.IGNORECASE)


def unlabelled(counts: Counts, part_of: dict[Path, str | None], classes: dict[Path, str]) -> Iterable[str]:
    """A line for each part without classes, and one for images outside of the class folders."""
    bare: defaultdict[str, list[Path]] = defaultdict(list)
    for path, part in part_of.items():
        if path not in classes:
            bare[part or ""].append(path)
    for part, paths in bare.items():
        total = sum(counts[path] for path in paths)
        if part and not any(part_of[path] == part for path in classes):
            flat = all(path[-1] == part for path in paths)
            lacks = "no class folders" if flat else "no folder named as a class"
            yield f"{part}/ has {lacks}: its {count(total, 'image')} {_are(total)} unlabelled"
        else:
            yield f"{where(counts, paths)} outside of the class folders {_are(total)} unlabelled"


def no_classes(counts: Counts, rests: dict[str, dict[Path, Path]], classes: dict[Path, str]) -> Iterable[str]:
    """Why folders are no classes, if there are several."""
    folders = sorted({rest for part in rests.values() for rest in part.values() if rest})
    if len(folders) < 2:
        return
    outside = sum(counts[path] for part in rests.values() for path, rest in part.items() if not rest)
    if 2 * outside > sum(counts.values()):
        why = f"{count(outside, 'image')} {'lies' if outside == 1 else 'lie'} outside of them"
    elif not classes:
        why = f"their names ({'/'.join(folders[0])}, {'/'.join(folders[1])}, ...) tell none apart"
    elif len(set(classes.values())) < 2:
        why = f"there would be one alone, {next(iter(classes.values()))}"
    else:
        why = "they hold fewer than two images each on average"
    yield f"{len(folders):,} folders are not read as classes: {why}; --label-depth says which are"


def merged(readings: dict[str, dict[Path, Path]]) -> Iterable[str]:
    """A line if folders of one name under different parents are one class."""
    for reading in sorted(readings.values(), key=lambda reading: -len(set(reading.values()))):
        folders = {
            (*(name for name in folder[:-1] if not FOLD.fullmatch(name)), folder[-1])
            for folder in reading.values()
        }
        alike = Counter(folder[-1] for folder in folders)
        if len(folders) > len(alike):
            name = max(alike, key=lambda name: alike[name])
            yield (
                f"{len(folders):,} folders are {len(alike):,} classes, since those of one name are one class "
                f"({alike[name]:,} are named {name}); --label-depth path keeps them apart"
            )
            return


def where(counts: Counts, paths: Sequence[Path]) -> str:
    """How many images lie in the folders, and which these are."""
    first = "/".join(paths[0])
    place = f"in {first}/" if first else "in the top folder"
    place += f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
    return f"{count(sum(counts[path] for path in paths), 'image')} ({place})"


def _are(n: int) -> str:
    return "is" if n == 1 else "are"
