"""A person's own images: a folder of examples for each class, and a folder of images to label."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from metalearn.errors import UsageError, did_you_mean
from metalearn.tasks.images.files import ImageTree, list_images
from metalearn.tasks.images.format import BadImageError, ImageFormat
from metalearn.use.inputs import decoded, format_of
from metalearn.use.learner import Learner

ON_BAD_IMAGE = ("error", "skip")
_Read = Callable[[str], bytes]


@dataclass(frozen=True)
class Pictures:
    """Decoded images with their names.

    Attributes:
        names: the files, as paths within their folder or zip.
        pixels: the images as the model takes them, uint8 `[image, channel, height, width]`.
        classes: the class that each is known to belong to, or `None`.
        skipped: files that could not be read.
    """

    names: tuple[str, ...]
    pixels: Tensor
    classes: tuple[str | None, ...]
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """What the images of a query folder were labelled.

    Attributes:
        classes: in the order of the probabilities.
        support: what was adapted to.
        query: what was labelled; `query.classes` are the true classes where the folders' names tell them.
        probabilities: `[image, class]`.
        image_format: how files became inputs.
    """

    classes: tuple[str, ...]
    support: Pictures
    query: Pictures
    probabilities: Tensor
    image_format: ImageFormat

    @property
    def labels(self) -> tuple[str, ...]:
        """The likeliest class of each query image."""
        return tuple(self.classes[place] for place in self.probabilities.argmax(1).tolist())

    @property
    def confidences(self) -> tuple[float, ...]:
        """The probability of each query image's label."""
        return tuple(self.probabilities.amax(1).tolist())

    @property
    def right(self) -> tuple[bool | None, ...]:
        """Whether each label is the true class; `None` where that is not known."""
        pairs = zip(self.labels, self.query.classes, strict=True)
        return tuple(None if truth is None else label == truth for label, truth in pairs)

    @property
    def accuracy(self) -> float | None:
        """The share of right labels among the images whose class is known; `None` if there are none."""
        known = [each for each in self.right if each is not None]
        return sum(known) / len(known) if known else None


def label_images(
    learner: Learner,
    support: Path,
    query: Path,
    *,
    inverted: bool | None = None,
    on_bad_image: str = "error",
    num_inner_steps: int | None = None,
    batch_size: int | None = None,
) -> Labelled:
    """Adapts to a folder of examples and labels a folder of images; every file is decoded as the run's task did.

    Args:
        learner: of a run on images.
        support: a folder or zip with one sub-folder a class.
        query: a folder or zip of images, or one image. Those in a sub-folder called like a class are known to be of it.
        inverted: whether dark becomes high (ink on paper); by default as in the run's task.
        on_bad_image: what to do with a file that is no readable image: `"error"`, or `"skip"`.
        num_inner_steps: as for `Learner.adapt`.
        batch_size: as for `AdaptedLearner.predict`.

    Raises:
        UsageError: the run is not of images, a class is empty, there are too many, no image to label, or a bad one.
    """
    if on_bad_image not in ON_BAD_IMAGE:
        raise UsageError(f"on_bad_image={on_bad_image!r} is unknown. {did_you_mean(str(on_bad_image), ON_BAD_IMAGE)}")
    if learner.task.kind != "classification":
        raise UsageError(
            f"the run is a regression ({learner.task.name}), which has no classes to label images with. Use it from "
            "Python: metalearn.load(run).adapt(x, y).predict(x)."
        )
    for name, path in (("support", support), ("query", query)):
        if not path.exists():
            raise UsageError(f"{name}={path} is not there. Give a folder of images, or a zip of one.")
    image_format = format_of(learner.task)
    if inverted is not None:
        image_format = replace(image_format, inverted=inverted)
    examples = _support(support, learner, image_format, skip=on_bad_image == "skip")
    classes = tuple(dict.fromkeys(filter(None, examples.classes)))
    images = _query(query, classes, image_format, skip=on_bad_image == "skip")
    adapted = learner.adapt(examples.pixels, examples.classes, num_inner_steps=num_inner_steps)
    return Labelled(
        classes=tuple(adapted.classes_.tolist()),
        support=examples,
        query=images,
        probabilities=torch.from_numpy(adapted.predict_proba(images.pixels, batch_size=batch_size)),
        image_format=image_format,
    )


def _support(path: Path, learner: Learner, image_format: ImageFormat, *, skip: bool) -> Pictures:
    tree = list_images(path)
    if tree.empty:
        raise UsageError(f"the class {tree.empty[0]!r} in support={path} has no image. Fill the folder or remove it.")
    if not tree.classes:
        what = f"{len(tree.loose)} images and no sub-folder" if tree.loose else "no images"
        raise UsageError(f"support={path} has {what}: it needs one sub-folder of images for each class.")
    if tree.loose:
        raise UsageError(f"support={path} has images outside its classes, such as {tree.loose[0]}: move them into one.")
    most = learner.task.num_outputs
    if not 2 <= len(tree.classes) <= most:
        shown = ", ".join(list(tree.classes)[:8]) + (", …" if len(tree.classes) > 8 else "")
        hint = "" if len(tree.classes) < 2 else f" Leave some out, or train with task.ways={len(tree.classes)}."
        raise UsageError(f"support={path} has {len(tree.classes)} classes ({shown}); the run takes 2 to {most}.{hint}")
    files = [(each.member, name) for name, members in tree.classes.items() for each in members]
    found = _decode(tree, files, image_format, skip=skip)
    for name in tree.classes:
        if name not in found.classes:
            raise UsageError(f"no image of the class {name!r} in support={path} can be read: give it one that can.")
    return found


def _query(path: Path, classes: Sequence[str], image_format: ImageFormat, *, skip: bool) -> Pictures:
    if path.is_file() and path.suffix.lower() != ".zip":
        return _one_image(path, image_format)
    tree = list_images(path)
    files = [(name, None) for name in tree.loose]
    # By the member's own folders: a class's name lacks those that everything lies in, which may be called like a class.
    files += [
        (each.member, _true_class((name, each.member.rpartition("/")[0]), classes))  # type: ignore[misc]
        for name, members in tree.classes.items()
        for each in members
    ]
    if not files:
        raise UsageError(f"query={path} has no images to label.")
    found = _decode(tree, files, image_format, skip=skip)
    if not found.names:
        raise UsageError(f"none of the {len(files)} images in query={path} can be read.")
    return found


def _one_image(path: Path, image_format: ImageFormat) -> Pictures:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"query={path} can not be read ({error.strerror or error}).") from None
    return Pictures((path.name,), decoded(content, str(path), image_format)[None], (None,))


def _true_class(folders: tuple[str, str], classes: Sequence[str]) -> str | None:
    """The class that a folder of query images is called after: by a whole path, else by its name or a parent's."""
    candidates = (*folders, *reversed(PurePosixPath(folders[1]).parts))
    return next((name for name in candidates if name in classes), None)


def _decode(
    tree: ImageTree, files: Sequence[tuple[str, str | None]], image_format: ImageFormat, *, skip: bool
) -> Pictures:
    kept: list[tuple[str, Tensor, str | None]] = []
    skipped: list[str] = []
    with tree.opened() as read:
        for member, name in files:
            try:
                kept.append((member, _image(read, member, tree.path, image_format), name))
            except BadImageError as error:
                if not skip:
                    raise UsageError(f"{error} Remove it, or leave such files out with on_bad_image=skip.") from None
                skipped.append(member)
    pixels = torch.stack([each[1] for each in kept]) if kept else torch.empty(0, *image_format.shape, dtype=torch.uint8)
    return Pictures(tuple(each[0] for each in kept), pixels, tuple(each[2] for each in kept), tuple(skipped))


def _image(read: _Read, member: str, path: Path, image_format: ImageFormat) -> Tensor:
    return decoded(read(member), f"{path}: {member}" if path.is_file() else str(path / member), image_format)
