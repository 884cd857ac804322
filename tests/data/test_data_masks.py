"""Images with masks: where they are found, how they are resized and augmented together, and what is refused."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from netsmith.data import decoding
from netsmith.data import named as data_named
from netsmith.data.images import IGNORED, MemoryImages
from netsmith.data.mask_files import masked_set
from netsmith.data.splits import DataOptions, LazyImages, MaskedImages, augmented_pair, batches, open_data
from netsmith.errors import DataError
from shapes import CLASSES, draw, write_masks


@pytest.fixture
def folder(tmp_path):
    write_masks(tmp_path / "set", {"train": 6, "val": 2, "test": 3})
    return tmp_path / "set"


def test_images_and_masks_come_in_pairs(folder):
    splits = open_data(f"masks:{folder}")
    assert (splits.classes, splits.shape) == (CLASSES, (3, 32, 32))
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [6, 2, 3]
    picture, mask = draw(4)
    assert torch.equal(splits.train.images([4])[0].mul(255).round().byte(), torch.from_numpy(picture).permute(2, 0, 1))
    assert torch.equal(splits.train.targets([4])[0], torch.from_numpy(mask).long())
    few = splits.train.subset([4, 1])
    assert torch.equal(few.targets([0]), splits.train.targets([4]))
    assert set(splits.train.labels.tolist()) == {0}


def test_the_other_arrangements(folder, tmp_path):
    for kind in ("images", "masks"):
        for part in ("train", "val", "test"):
            shutil.copytree(folder / part / kind, tmp_path / "turned" / kind / part)
        shutil.copytree(folder / "train" / kind, tmp_path / "plain" / kind)
    expected = open_data(f"masks:{folder}")
    turned, plain = open_data(f"masks:{tmp_path}/turned"), open_data(f"masks:{tmp_path}/plain")
    assert turned.classes == plain.classes == ("0", "1", "2")
    assert torch.equal(turned.test.targets([2]), expected.test.targets([2]))
    assert len(plain.train) + len(plain.validation) + len(plain.test) == 6
    assert isinstance(plain.test, MaskedImages)


def test_masks_are_resized_by_the_nearest_pixel_in_step_with_their_image(tmp_path):
    for kind, value in (("images", 200), ("masks", 1)):
        (tmp_path / kind).mkdir()
        for i in range(8):
            pixels = np.zeros((10, 20), np.uint8)
            pixels[:, 8:12] = value  # a stripe in the middle, which the crop keeps
            Image.fromarray(pixels).save(tmp_path / kind / f"{i}.png")
    train = open_data(f"masks:{tmp_path}", size=5).train
    mask = train.targets([0])[0]
    assert mask.tolist() == [[0, 1, 1, 0, 0]] * 5  # columns 6, 8, 10, 12 and 14: the middle ten, two to one
    assert (train.images([0])[0, 0, 2][mask[2] == 1] > 0.3).all()


def test_palette_binary_and_wide_masks_are_numbers(tmp_path):
    values = np.arange(16, dtype=np.uint8).reshape(4, 4) % 3
    palette = Image.fromarray(values)
    palette.putpalette([200, 10, 10, 0, 0, 0, 9, 9, 250] + [7] * 759)
    variants = [palette, Image.fromarray(values.astype(np.int32)), Image.fromarray(values.astype(np.uint16))]
    variants.append(Image.fromarray(values == 1))
    files = [tmp_path / f"{i}.{'tif' if variant.mode == 'I' else 'png'}" for i, variant in enumerate(variants)]
    for file, variant in zip(files, variants, strict=True):
        variant.save(file)
        Image.new("RGB", (4, 4)).save(file.with_suffix(".jpg"))
    found = masked_set([f.with_suffix(".jpg") for f in files], files, CLASSES, DataOptions(None, tmp_path, False))
    masks = found.targets(range(4))
    assert all(torch.equal(mask, torch.from_numpy(values).long()) for mask in masks[:3])
    assert torch.equal(masks[3], torch.from_numpy(values == 1).long())


def test_masks_beyond_the_memory_limit_are_decoded_on_demand(folder, monkeypatch):
    expected = open_data(f"masks:{folder}")
    for name in ("decode_set", "decode_masks"):
        function = getattr(decoding, name)
        monkeypatch.setattr(
            f"netsmith.data.mask_files.{name}",
            lambda *a, function=function, **k: function(*a, **k, memory_limit=1),
        )
    splits = open_data(f"masks:{folder}")
    assert isinstance(splits.train.masks, LazyImages)
    assert torch.equal(splits.train.targets([3, 1]), expected.train.targets([3, 1]))
    assert torch.equal(splits.train.images([3, 1]), expected.train.images([3, 1]))


def test_masks_move_with_their_images():
    numbers = torch.arange(4 * 8 * 8).reshape(4, 8, 8) % 200
    images, masks = augmented_pair(numbers[:, None] / 255, numbers, torch.Generator().manual_seed(0))
    outside = masks == IGNORED
    assert outside.any()
    assert torch.equal(images[:, 0][~outside], masks[~outside] / 255)
    assert (images[:, 0][outside] == 0).all()
    assert not torch.equal(masks[0], numbers[0])


def test_batches_give_masks(folder):
    train = open_data(f"masks:{folder}").train
    plain = list(batches(train, 4, shuffle=False, seed=0))
    assert [tuple(masks.shape) for _, masks in plain] == [(4, 32, 32), (2, 32, 32)]
    images, masks = next(batches(train, 4, shuffle=False, seed=0, augment=True))
    assert images.shape == (4, 3, 32, 32)
    assert masks.shape == (4, 32, 32)
    assert not torch.equal(masks, plain[0][1])


def test_the_fingerprint_follows_the_masks(folder):
    before = open_data(f"masks:{folder}").fingerprint
    assert open_data(f"masks:{folder}").fingerprint == before
    path = folder / "train" / "masks" / "002.png"
    Image.fromarray(np.asarray(Image.open(path)).T).save(path)
    assert open_data(f"masks:{folder}").fingerprint != before


# --- what is refused --------------------------------------------------------------------------------------------------


def paint(path, value, size=32):
    Image.fromarray(np.full((size, size), value, np.uint8)).save(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "train/masks/003.png").unlink(), r"image without a mask: '.*003\.png' has no counterpart in"),
        (lambda f: (f / "test/images/001.png").unlink(), r"mask without an image: '.*test/masks/001\.png'"),
        (lambda f: paint(f / "train/masks/001.png", 7), r"mask '.*001\.png' holds class 7, .* 3 classes \(0 to 2; 255"),
        (lambda f: paint(f / "train/masks/001.png", 0, 16), r"001\.png' has 16x16 pixels, its image 32x32"),
        (lambda f: Image.new("RGB", (32, 32)).save(f / "val/masks/001.png"), r"is in colour \(mode RGB\)"),
        (lambda f: (f / "val/masks/001.png").write_bytes(b"no image"), r"001\.png' is no readable image"),
        (lambda f: shutil.rmtree(f / "val/masks"), r"there is no folder .*val/masks: one folder 'images' and one"),
        (lambda f: shutil.rmtree(f / "train"), r"has test, validation but no train part"),
        (lambda f: paint(f / "train/images/001.jpg", 0), r"differ in their endings only"),
        (lambda f: (f / "classes.txt").write_text("one\n"), r"255 marks pixels to be left out"),
    ],
)
def test_sets_that_cannot_be_used(folder, damage, message):
    damage(folder)
    with pytest.raises(DataError, match=message):
        open_data(f"masks:{folder}")


def test_black_and_white_masks_are_explained(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        for i in range(3):
            paint(tmp_path / kind / f"{i}.png", 255 * i % 510)
    with pytest.raises(DataError, match="Two classes are 0 and 1 in a mask, not 0 and 255"):
        open_data(f"masks:{tmp_path}")


def test_paths_that_are_no_set(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file; one folder 'images' and one folder 'masks'"):
        open_data(f"masks:{tmp_path}/file")
    with pytest.raises(DataError, match=r"there is no folder .*images"):
        open_data(f"masks:{tmp_path}")
    with pytest.raises(DataError, match="'masks:' needs a path"):
        open_data("masks:")


def test_masks_and_images_must_belong_together():
    labels = torch.zeros(2, dtype=torch.int64)
    pictures = MemoryImages(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), labels, ("a", "b"))
    masks = MemoryImages(torch.zeros(2, 1, 4, 5, dtype=torch.uint8), labels, ("a", "b"))
    with pytest.raises(DataError, match=r"images .2 of 4x4 pixels. and masks .2 of 4x5 pixels"):
        MaskedImages(pictures, masks, ("a", "b"))


# --- torchvision ------------------------------------------------------------------------------------------------------


def write_voc(root, counts=(("train", 8), ("val", 3))):
    base = root / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / name).mkdir(parents=True)
    seed = 0
    for part, count in counts:
        names = []
        for _ in range(count):
            picture, mask = draw(seed, 40)
            palette = Image.fromarray(mask[:, :36])
            palette.putpalette([i // 3 for i in range(768)])
            Image.fromarray(picture[:, :36]).save(base / "JPEGImages" / f"{seed:06}.jpg", quality=95)
            palette.save(base / "SegmentationClass" / f"{seed:06}.png")
            names.append(f"{seed:06}")
            seed += 1
        (base / "ImageSets/Segmentation" / f"{part}.txt").write_text("\n".join(names) + "\n")


def test_voc_as_torchvision_keeps_it(tmp_path):
    write_voc(tmp_path)
    splits = open_data("torchvision:VOCSegmentation", root=tmp_path, download=False, size=32)
    assert (len(splits.classes), splits.shape, len(splits.test)) == (21, (3, 32, 32), 3)
    assert splits.classes[0] == "background"
    assert set(splits.test.targets(range(3)).unique().tolist()) <= {0, 1, 2, 255}
    with pytest.raises(DataError, match=r"must not be downloaded \(2000 MB\)\. Put it there yourself \(VOCdevkit"):
        open_data("torchvision:VOCSegmentation", root=tmp_path / "elsewhere", download=False)


def write_celeba(root, monkeypatch, n=24):
    base = root / "celeba"
    (base / "img_align_celeba").mkdir(parents=True)
    names = [f"{i:06}.jpg" for i in range(n)]
    for i, name in enumerate(names):
        Image.fromarray(np.full((22, 18, 3), 10 * i, np.uint8)).save(base / "img_align_celeba" / name)
    head = f"{n}\nsmiling\n"
    (base / "list_eval_partition.txt").write_text(
        "".join(f"{m} {0 if i < n - 8 else 1 + i % 2}\n" for i, m in enumerate(names))
    )
    (base / "identity_CelebA.txt").write_text("".join(f"{m} 1\n" for m in names))
    for file in ("list_bbox_celeba.txt", "list_landmarks_align_celeba.txt", "list_attr_celeba.txt"):
        (base / file).write_text(head + "".join(f"{m} 1\n" for m in names))
    # the real check is of hashes of the real files
    monkeypatch.setattr(data_named.tvd.CelebA, "_check_integrity", lambda self: True)


def test_celeba_is_one_class_of_images(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"CelebA is not in .*\(1444 MB\)"):
        open_data("torchvision:CelebA", root=tmp_path, download=False)
    write_celeba(tmp_path, monkeypatch)
    splits = open_data("torchvision:CelebA", root=tmp_path, download=False, size=16)
    assert (splits.classes, splits.shape) == (("face",), (3, 16, 16))
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [16, 4, 4]
    assert set(splits.train.labels.tolist()) == {0}
