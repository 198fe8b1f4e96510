"""The pictures to learn from: a folder, its captions, and the sizes at which the pictures are seen (buckets)."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import InputError, PictureError
from ...listing import walk
from ...pictures.reading import fit, open_picture
from ..data import METADATA, SUFFIXES, metadata_captions, shortened
from ..runs import TEACHING

CAPTIONS = (".txt", ".caption")  # endings of the files with captions, next to the pictures
Size = tuple[int, int]  # (width, height) in pixels


@dataclass(frozen=True)
class TaughtPicture:
    """One picture of the folder; `size` is the file's own, upright, and `caption` None where there is none."""

    path: Path
    size: Size
    caption: str | None

    @property
    def stamp(self) -> tuple[int, int]:
        """The file's present version: its modification time and size. Raises OSError."""
        stat = self.path.stat()
        return stat.st_mtime_ns, stat.st_size

    def pixels(self, size: Size, mirrored: bool = False) -> np.ndarray:
        """(H, W, 3) float32 in [-1, 1], cropped at the centre. Raises `PictureError` if the file was changed since."""
        array = np.asarray(fit(open_picture(self.path), *size), np.float32) / 127.5 - 1
        return np.ascontiguousarray(array[:, ::-1]) if mirrored else array

    def time_ids(self, size: Size) -> np.ndarray:
        """(6,): the file's height and width, the crop's top and left after scaling, the height and width of `size`.

        Podell et al. 2023, arXiv:2307.01952, section 2.2, as diffusers' train_text_to_image_lora_sdxl.py has them.
        """
        (width, height), (w, h) = self.size, size
        scale = max(w / width, h / height)
        top, left = (max(0, round((scale * side - cut) / 2)) for side, cut in ((height, h), (width, w)))
        return np.array([height, width, top, left, h, w], np.float32)


@dataclass(frozen=True)
class TaughtFolder:
    """A folder's pictures in the order of their names, and what was skipped: "name (reason)".

    `side` of None is the model's own size.
    """

    path: Path
    side: int | None
    pictures: tuple[TaughtPicture, ...]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pictures)

    def captioned(self, caption: str | None, trigger: str | None) -> list[str]:
        """Each picture's caption: `caption` for all if it is given, with the `trigger` word in front if it lacks that.

        Raises `InputError` where there is neither a caption nor a trigger.
        """
        texts = [caption if caption is not None else each.caption for each in self.pictures]
        lacking = [each.path.name for each, text in zip(self.pictures, texts, strict=True) if not text]
        if lacking and not trigger:
            raise InputError(
                f"{len(lacking)} of {len(self)} pictures in {str(self.path)!r} have no caption: {shortened(lacking)}. "
                f"Write a .txt file of the same name next to each, or give one caption for all (--caption)."
            )
        return [with_trigger(text or "", trigger) for text in texts]


def with_trigger(text: str, trigger: str | None) -> str:
    """The text with the word in front, unless it is in the text already."""
    if not trigger or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", text, re.IGNORECASE):
        return text
    return f"{trigger}, {text}" if text else trigger


def open_folder(path: str | os.PathLike | None, size: int | None, seed: int = 0) -> TaughtFolder:
    """Read a folder's pictures and captions: .txt or .caption files of the same names, or lines of metadata.jsonl.

    Pictures that cannot be opened, and captions that cannot be read, are skipped with one warning that counts and names
    them. Raises `InputError` if no picture is left.
    """
    if path is None:
        raise InputError("Say what to learn from: --data FOLDER, a folder of pictures.")
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"There is no folder at {str(path)!r}: give a folder of pictures to learn from.")
    written = metadata_captions(folder / METADATA)
    inside = (each.relative_to(folder) for each in walk(folder) if each.suffix.lower() in SUFFIXES)
    names = {each.as_posix() for each in inside if not any(part.endswith(TEACHING) for part in each.parts)}
    found, skipped = [], []
    for name in sorted(names | written.keys()):
        try:
            opened = open_picture(folder / name)
            caption = written.get(name) or caption_of(folder / name)
        except (PictureError, InputError) as error:
            missing = not (folder / name).is_file()
            reason = str(error) if not isinstance(error, PictureError) else "missing" if missing else "cannot be opened"
            skipped.append(f"{name} ({reason})")
            continue
        found.append(TaughtPicture(folder / name, opened.size, caption))
    if not found:
        why = f"none of its {len(skipped)} can be used: {shortened(skipped)}" if skipped else "it has none"
        raise InputError(f"No pictures in {str(path)!r}: {why}. Give .jpg, .png or .webp files.")
    if skipped:
        message = f"Skipped {len(skipped)} of {len(found) + len(skipped)} pictures in {str(path)!r}"
        warnings.warn(f"{message}: {shortened(skipped)}.", stacklevel=2)
    return TaughtFolder(folder, size, tuple(found), tuple(skipped))


def caption_of(picture: Path) -> str | None:
    """The caption in the file next to a picture, None without one; UTF-8, or UTF-16 with its mark.

    Raises `InputError` for another encoding.
    """
    for suffix in CAPTIONS:
        file = picture.with_suffix(suffix)
        if not file.is_file():
            continue
        try:
            content = file.read_bytes()
            encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
            return " ".join(content.decode(encoding).split()) or None
        except (OSError, UnicodeDecodeError):
            raise InputError(f"{file.name} is neither UTF-8 nor UTF-16 text") from None
    return None


# --- Buckets of aspect ratios


def buckets(side: int) -> list[Size]:
    """Sizes of at most side x side pixels, their sides multiples of an eighth of `side` or of 64, up to 4 : 1.

    Novel AI's aspect ratio bucketing (2022), which kohya's scripts have too.
    """
    step = min(64, side // 8)
    widths = range(side // 2 // step * step, 2 * side + 1, step)
    return [(width, side * side // width // step * step) for width in widths]


def bucket_of(size: Size, sizes: Sequence[Size]) -> Size:
    """The size of the nearest aspect ratio, by its logarithm; of two alike the larger one."""
    ratio = math.log(size[0] / size[1])
    return min(sizes, key=lambda each: (round(abs(math.log(each[0] / each[1]) - ratio), 6), -each[0] * each[1]))


@dataclass(frozen=True)
class Order:
    """Which pictures each step takes: all of one bucket, every picture once an epoch.

    The last batch of a bucket is filled up with its first pictures. All randomness is in (seed, epoch).
    """

    members: dict[Size, tuple[int, ...]]  # pictures by bucket
    batch: int
    seed: int

    @classmethod
    def of(cls, sizes: Sequence[Size], batch: int, seed: int) -> Order:
        """The order of pictures whose buckets are `sizes`."""
        members = {size: tuple(i for i, each in enumerate(sizes) if each == size) for size in dict.fromkeys(sizes)}
        return cls(members, batch, seed)

    @property
    def steps_per_epoch(self) -> int:
        return sum(math.ceil(len(each) / self.batch) for each in self.members.values())

    def step(self, number: int) -> tuple[Size, list[int]]:
        """The bucket of a step, and its `batch` pictures."""
        epoch, place = divmod(number, self.steps_per_epoch)
        rng = np.random.default_rng((self.seed, epoch, 2))
        chunks = []
        for size, some in self.members.items():
            shuffled = [some[i] for i in rng.permutation(len(some))]
            count = math.ceil(len(some) / self.batch) * self.batch
            filled = [shuffled[i % len(shuffled)] for i in range(count)]
            chunks += [(size, filled[i : i + self.batch]) for i in range(0, count, self.batch)]
        return chunks[rng.permutation(len(chunks))[place]]
