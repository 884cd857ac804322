from __future__ import annotations

import io
import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from netsmith.data import named as data_named
from netsmith.data.decoding import Encoded, decode_set
from netsmith.data.images import MemoryImages
from netsmith.data.splits import (
    DATA_SOURCES,
    DataInfo,
    LazyImages,
    Parts,
    batches,
    data_source,
    describe_data,
    open_data,
    probe_set,
    stratified_split,
)
from netsmith.errors import DataError, MissingDependencyError


def png(value, size=(6, 5), mode="RGB"):
    """Bytes of an image of one colour; `size` is width and height."""
    stream = io.BytesIO()
    Image.new(mode, size, value if mode == "L" else (value, 0, 255 - value)).save(stream, "PNG")
    return stream.getvalue()


def write_parquet(path, values, labels, *, names=None, size=(6, 5), image="image", label="label", contents=None):
    rows = [{"bytes": c, "path": None} for c in (contents or [png(v, size) for v in values])]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({image: pa.array(rows, kind), label: pa.array(labels, pa.int64())})
    if names:
        features = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def write_folder(root, counts, *, size=(6, 5), start=0):
    """`counts` images of each class, each with a value of its own."""
    value = start
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i:03}.png").write_bytes(png(value % 256, size))
            value += 1


def reds(image_set):
    return image_set.images(range(len(image_set)))[:, 0, 0, 0].mul(255).round().int().tolist()


# --- digits -----------------------------------------------------------------------------------------------------------


def test_digits_are_split_once_and_for_all():
    one, two = open_data("digits"), open_data("digits", seed=5, validation_fraction=0.4)
    assert [len(p) for p in (one.train, one.validation, one.test)] == [1169, 269, 359]
    assert one.shape == (1, 8, 8)
    assert one.classes == tuple("0123456789")
    assert one.fingerprint == two.fingerprint
    for part in (one.train, one.validation, one.test):
        share = part.labels.bincount(minlength=10).float() / len(part)
        assert (share - 0.1).abs().max() < 0.01


def test_digits_parts_hold_every_image_once():
    from sklearn.datasets import load_digits

    splits = open_data("digits")
    ours = torch.cat([p.images(range(len(p))) for p in (splits.train, splits.validation, splits.test)])
    assert ours.min() == 0
    assert ours.max() == 1
    theirs = torch.from_numpy(load_digits().images).float()
    # 17 levels became bytes: back to levels they are the same images in another order
    levels = ours[:, 0].mul(16).round().flatten(1)
    assert sorted(map(tuple, levels.tolist())) == sorted(map(tuple, theirs.flatten(1).tolist()))


def test_digits_can_be_resized():
    assert open_data("digits", size=16).shape == (1, 16, 16)


# --- errors of the source string --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("digit", "unknown data source 'digit'. Did you mean 'digits'"),
        ("parket:x", "unknown data source 'parket:x'. Did you mean 'parquet'"),
        ("digits:8", "'digits' takes nothing after it"),
        ("torchvision:CIFAR", "unknown data set 'torchvision:CIFAR'. Did you mean 'CIFAR10'"),
        ("folder:", "'folder:' needs a path"),
        ("parquet:/nowhere/at/all", "there is no '/nowhere/at/all'. There is no '/nowhere/at' either"),
    ],
)
def test_unknown_sources_name_what_is_near(source, message):
    with pytest.raises(DataError, match=message):
        open_data(source, download=False)


def test_a_misspelt_path_names_its_neighbours(tmp_path):
    write_folder(tmp_path / "flowers", {"a": 2})
    with pytest.raises(DataError, match="Did you mean 'flowers'"):
        open_data(f"folder:{tmp_path / 'flower'}")


@pytest.mark.parametrize(("key", "value"), [("validation_fraction", 0.0), ("validation_fraction", 1.0), ("size", 0)])
def test_options_out_of_range(key, value):
    with pytest.raises(DataError, match=key):
        open_data("digits", **{key: value})


def test_a_source_of_ones_own():
    @data_source("three")
    def _open(argument, options):
        labels = torch.arange(30) % 3
        return Parts(MemoryImages(torch.zeros(30, 1, 4, 4, dtype=torch.uint8), labels, ("a", "b", "c")))

    try:
        splits = open_data("three")
        # a fifth for test first, then a tenth of the rest, by class
        assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [21, 3, 6]
    finally:
        del DATA_SOURCES["three"]


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_in_three_parts_is_taken_as_it_is(tmp_path):
    write_folder(tmp_path / "train", {"cat": 4, "dog": 3})
    write_folder(tmp_path / "val", {"cat": 1, "dog": 2}, start=50)
    write_folder(tmp_path / "test", {"cat": 2, "dog": 2}, start=90)
    splits = open_data(f"folder:{tmp_path}")
    assert splits.classes == ("cat", "dog")
    assert splits.shape == (3, 5, 6)
    assert splits.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert reds(splits.train) == [0, 1, 2, 3, 4, 5, 6]
    assert reds(splits.validation) == [50, 51, 52]
    assert reds(splits.test) == [90, 91, 92, 93]


def test_a_folder_in_one_piece_is_split_by_class_and_seed(tmp_path):
    write_folder(tmp_path, {"cat": 20, "dog": 20})
    one, same, other = (open_data(f"folder:{tmp_path}", seed=s) for s in (0, 0, 1))
    assert [len(p) for p in (one.train, one.validation, one.test)] == [28, 4, 8]
    assert one.test.labels.bincount().tolist() == [4, 4]
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert sorted(reds(one.train) + reds(one.validation) + reds(one.test)) == list(range(40))


def test_a_validation_folder_without_a_test_folder_is_the_test_part(tmp_path):
    write_folder(tmp_path / "train", {"cat": 10, "dog": 10})
    write_folder(tmp_path / "val", {"cat": 1, "dog": 1}, start=90)
    splits = open_data(f"folder:{tmp_path}")
    assert reds(splits.test) == [90, 91]
    assert len(splits.validation) == 2
    assert len(splits.train) == 18


def test_images_of_differing_size_need_a_size(tmp_path):
    write_folder(tmp_path, {"cat": 5}, size=(6, 5))
    write_folder(tmp_path / "more", {"dog": 5}, size=(9, 4))
    (tmp_path / "more" / "dog").rename(tmp_path / "dog")
    (tmp_path / "more").rmdir()
    with pytest.raises(DataError, match=r"000.png' has 6x5 pixels, .*dog/000.png' has 9x4. Give a size"):
        open_data(f"folder:{tmp_path}")
    assert open_data(f"folder:{tmp_path}", size=4).shape == (3, 4, 4)


def test_resizing_keeps_the_middle_square(tmp_path):
    row = np.repeat(np.array([10, 10, 10, 10, 60, 60, 60, 60, 200, 200, 200, 200], dtype=np.uint8)[None], 4, axis=0)
    encoded = Encoded(lambda i: Image.fromarray(row), str, torch.tensor([0]), ["0"])
    pixels = decode_set(encoded, ("a",), size=4).images([0])
    assert pixels.shape == (1, 1, 4, 4)
    assert torch.equal(pixels, torch.full((1, 1, 4, 4), 60 / 255))


def test_a_corrupt_image_is_named(tmp_path):
    write_folder(tmp_path, {"cat": 3, "dog": 3})
    whole = (tmp_path / "dog" / "001.png").read_bytes()
    (tmp_path / "dog" / "001.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"dog/001.png' is no readable image"):
        open_data(f"folder:{tmp_path}")


def test_a_folder_without_classes_has_no_labels(tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    with pytest.raises(DataError, match=r"no labels: .* one folder of images a class"):
        open_data(f"folder:{tmp_path}")


def test_classes_that_only_the_test_folder_has(tmp_path):
    write_folder(tmp_path / "train", {"cat": 2, "dog": 2})
    write_folder(tmp_path / "test", {"cat": 2, "emu": 2})
    with pytest.raises(DataError, match="has classes that the train folder lacks: emu"):
        open_data(f"folder:{tmp_path}")


def test_grey_and_colour_in_one_set_is_colour(tmp_path):
    write_folder(tmp_path, {"cat": 3, "dog": 3})
    (tmp_path / "cat" / "000.png").write_bytes(png(77, mode="L"))
    splits = open_data(f"folder:{tmp_path}")
    assert splits.shape == (3, 5, 6)


def test_images_beyond_the_memory_limit_are_decoded_on_demand():
    contents = [png(v) for v in range(6)]
    encoded = Encoded(lambda i: contents[i], lambda i: f"row {i}", torch.tensor([0, 1] * 3), [str(i) for i in range(6)])
    kept = decode_set(encoded, ("a", "b"))
    lazy = decode_set(encoded, ("a", "b"), memory_limit=10)
    assert isinstance(kept, MemoryImages)
    assert isinstance(lazy, LazyImages)
    assert torch.equal(kept.images([4, 1]), lazy.images([4, 1]))
    assert torch.equal(kept.subset([5, 3]).images([1]), lazy.subset([5, 3]).images([1]))
    assert lazy.subset([5, 3]).labels.tolist() == [1, 1]
    contents[2] = b"no image"
    with pytest.raises(DataError, match="row 2 is no readable image"):
        lazy.images([2])


# --- parquet ----------------------------------------------------------------------------------------------------------


def test_parquet_with_names_and_three_parts(tmp_path):
    names = ["ant", "bee"]
    write_parquet(tmp_path / "train-00000-of-00002.parquet", [1, 2], [0, 1], names=names)
    write_parquet(tmp_path / "train-00001-of-00002.parquet", [3, 4], [0, 1], names=names)
    write_parquet(tmp_path / "validation-00000-of-00001.parquet", [5], [1], names=names)
    write_parquet(tmp_path / "test-00000-of-00001.parquet", [6, 7], [1, 0], names=names)
    splits = open_data(f"parquet:{tmp_path}")
    assert splits.classes == ("ant", "bee")
    assert reds(splits.train) == [1, 2, 3, 4]
    assert splits.train.labels.tolist() == [0, 1, 0, 1]
    assert reds(splits.validation) == [5]
    assert reds(splits.test) == [6, 7]


def test_parquet_in_folders_without_names(tmp_path):
    write_parquet(tmp_path / "train" / "0000.parquet", range(20), [0, 1, 2, 1] * 5, image="img", label="fine_label")
    write_parquet(tmp_path / "test" / "0000.parquet", [30, 31], [3, 0], image="img", label="fine_label")
    splits = open_data(f"parquet:{tmp_path}")
    assert splits.classes == ("0", "1", "2", "3")
    assert reds(splits.test) == [30, 31]
    assert len(splits.train) + len(splits.validation) == 20


def test_a_test_part_without_labels_counts_as_missing(tmp_path):
    write_parquet(tmp_path / "train.parquet", range(20), [0, 1] * 10)
    write_parquet(tmp_path / "validation.parquet", [30, 31], [0, 1])
    write_parquet(tmp_path / "test.parquet", [40, 41], [-1, -1])
    splits = open_data(f"parquet:{tmp_path}")
    assert reds(splits.test) == [30, 31]
    assert len(splits.validation) == 2


def test_one_parquet_file_is_split(tmp_path):
    write_parquet(tmp_path / "all.parquet", range(40), [0, 1] * 20)
    splits = open_data(f"parquet:{tmp_path / 'all.parquet'}")
    assert sorted(reds(splits.train) + reds(splits.validation) + reds(splits.test)) == list(range(40))


def test_parquet_images_may_be_kept_beside_it(tmp_path):
    write_folder(tmp_path, {"pictures": 20})
    rows = [{"bytes": None, "path": f"pictures/{i:03}.png"} for i in range(20)]
    table = pa.table({"image": pa.array(rows), "label": pa.array([0, 1] * 10)})
    pq.write_table(table, tmp_path / "a.parquet")
    splits = open_data(f"parquet:{tmp_path / 'a.parquet'}")
    assert sorted(reds(splits.train) + reds(splits.validation) + reds(splits.test)) == list(range(20))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(b"PAR1 no more"), "is no readable parquet file"),
        (lambda p: write_parquet(p, [1, 2], [0, 0], contents=[png(1), b"junk"]), r"row 1 of .* is no readable image"),
        (lambda p: write_parquet(p, [1, 2], [0, None]), "no labels: 1 rows of"),
        (lambda p: write_parquet(p, range(4), [0, 0, -1, 1]), r"has label -1; labels go from 0 to 1"),
        (lambda p: pq.write_table(pa.table({"label": [1]}), p), "has no image column .* its columns are label: int64"),
        (
            lambda p: pq.write_table(pa.table({"image": [{"bytes": png(1), "path": ""}], "text": ["a"]}), p),
            "no labels: .* needs one integer column named label",
        ),
    ],
)
def test_parquet_that_cannot_be_used(tmp_path, damage, message):
    damage(tmp_path / "train.parquet")
    write_parquet(tmp_path / "test.parquet", [1, 2], [0, 1])
    with pytest.raises(DataError, match=message):
        open_data(f"parquet:{tmp_path}")


def test_a_folder_without_parquet(tmp_path):
    with pytest.raises(DataError, match=r"no \*\.parquet file in"):
        open_data(f"parquet:{tmp_path}")


def test_parts_must_agree(tmp_path):
    write_parquet(tmp_path / "train.parquet", range(20), [0, 1] * 10, names=["a", "b"])
    write_parquet(tmp_path / "test.parquet", range(4), [0, 1] * 2, names=["a", "b"], size=(7, 7))
    with pytest.raises(DataError, match=r"images of the test part of .* are 3x7x7, those of its train part 3x5x6"):
        open_data(f"parquet:{tmp_path}")


@pytest.mark.slow
def test_cifar10_as_it_is_shared(shared_data):
    splits = open_data(f"parquet:{shared_data}")
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [50_000, 2_000, 8_000]
    assert splits.shape == (3, 32, 32)
    assert splits.classes[:3] == ("airplane", "automobile", "bird")
    row = pq.read_table(shared_data / "test.parquet").slice(4321, 1).to_pylist()[0]
    pixels = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"))
    ours = splits.test.images([4321])[0].mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.array_equal(ours, pixels)
    assert int(splits.test.labels[4321]) == row["label"]


# --- torchvision and hf -----------------------------------------------------------------------------------------------


def write_mnist(root, name="FashionMNIST"):
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", 60), ("t10k", 20)):
        images = (np.arange(n, dtype=np.uint8)[:, None, None] * np.ones((1, 28, 28), np.uint8)).tobytes()
        labels = (np.arange(n) % 10).astype(np.uint8).tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, n, 28, 28) + images)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, n) + labels)


def test_torchvision_set_that_is_there_needs_no_download(tmp_path):
    write_mnist(tmp_path)
    splits = open_data("torchvision:FashionMNIST", root=tmp_path, download=False)
    assert splits.shape == (1, 28, 28)
    assert splits.classes[0] == "T-shirt/top"
    assert reds(splits.test) == list(range(20))
    assert len(splits.validation) == 10
    assert sorted(reds(splits.train) + reds(splits.validation)) == list(range(60))
    assert splits.train.mirror
    assert describe_data("torchvision:FashionMNIST", root=tmp_path) == DataInfo(
        "torchvision:FashionMNIST", True, 0, str(tmp_path)
    )


def test_mirrored_digits_are_other_digits(tmp_path):
    write_mnist(tmp_path, "MNIST")
    assert not open_data("torchvision:MNIST", root=tmp_path, download=False).train.mirror
    assert not open_data("digits").train.mirror


def test_a_missing_set_says_where_to_put_it(tmp_path):
    with pytest.raises(DataError, match=r"must not be downloaded \(171 MB\)\. Put it there yourself \(cifar-10-b"):
        open_data("torchvision:CIFAR10", root=tmp_path, download=False)
    assert describe_data("torchvision:CIFAR10", root=tmp_path).download_mb == 171
    assert not list(tmp_path.iterdir())


def test_offline_says_so(tmp_path, monkeypatch):
    class Offline:
        def __init__(self, root, download, **rest):
            raise OSError("name not known") if download else RuntimeError("not found")

    monkeypatch.setattr(data_named.tvd, "CIFAR10", Offline)
    with pytest.raises(DataError, match=r"could not be downloaded \(171 MB; name not known\)\. Go online"):
        open_data("torchvision:CIFAR10", root=tmp_path)


def test_hf_needs_its_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r"netsmith\[hf\]"):
        open_data("hf:cifar10")


# --- splits -----------------------------------------------------------------------------------------------------------


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_stratified_split_takes_the_fraction_of_every_class(labels, fraction, seed):
    values = torch.tensor(labels)
    rest, part = stratified_split(values, fraction, seed)
    assert sorted(rest.tolist() + part.tolist()) == list(range(len(labels)))
    for value in set(labels):
        size, taken = labels.count(value), int((values[part] == value).sum())
        assert taken == min(max(1, round(fraction * size)), size - 1)
    again = stratified_split(values, fraction, seed)
    assert torch.equal(part, again[1])


# --- batches, augmentation, probe sets --------------------------------------------------------------------------------


def numbered(n=50, classes=5):
    pixels = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 1, 8, 8).contiguous()
    return MemoryImages(pixels, torch.arange(n) % classes, tuple("abcdefghij"[:classes]))


def drawn(*args, **kwargs):
    return [(x[:, 0, 0, 0].mul(255).round().int().tolist(), y.tolist()) for x, y in batches(*args, **kwargs)]


def test_batches_go_through_the_set_once():
    plain = drawn(numbered(), 16, shuffle=False, seed=0)
    assert [i for ids, _ in plain for i in ids] == list(range(50))
    assert [len(ids) for ids, _ in plain] == [16, 16, 16, 2]
    assert [len(ids) for ids, _ in drawn(numbered(), 16, shuffle=False, seed=0, drop_last=True)] == [16, 16, 16]
    shuffled = drawn(numbered(), 16, shuffle=True, seed=0)
    assert [i for ids, _ in shuffled for i in ids] != list(range(50))
    assert sorted(i for ids, _ in shuffled for i in ids) == list(range(50))
    assert all(i % 5 == label for ids, labels in shuffled for i, label in zip(ids, labels, strict=True))


def test_batches_follow_from_the_seed():
    first = [x for x, _ in batches(numbered(), 16, shuffle=True, seed=2**62, augment=True)]
    torch.manual_seed(99)
    again = [x for x, _ in batches(numbered(), 16, shuffle=True, seed=2**62, augment=True)]
    other = [x for x, _ in batches(numbered(), 16, shuffle=True, seed=1, augment=True)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_processes_share_a_set():
    parts = [drawn(numbered(51), 10, shuffle=True, seed=3, rank=r, world=2) for r in (0, 1)]
    assert [len(ids) for ids, _ in parts[0]] == [len(ids) for ids, _ in parts[1]] == [10, 10, 5]
    assert len({i for part in parts for ids, _ in part for i in ids}) == 50
    parts = [drawn(numbered(51), 10, shuffle=False, seed=3, rank=r, world=2) for r in (0, 1)]
    assert sorted(i for part in parts for ids, _ in part for i in ids) == list(range(51))


def test_augmentation_only_shifts_and_mirrors():
    """Brute force: every augmented image is one of the 2 x 3 x 3 possible ones, and all of those come up."""
    image = torch.rand(1, 2, 8, 8)
    pool = MemoryImages(
        image.mul(255).to(torch.uint8).expand(400, 2, 8, 8).contiguous(), torch.zeros(400).long(), ("a",)
    )
    source = pool.images([0])[0]
    padded = torch.nn.functional.pad(source, (1, 1, 1, 1))
    possible = [padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    possible += [p.flip(2) for p in possible]
    (augmented, _), *_ = batches(pool, 400, shuffle=False, seed=0, augment=True)
    matches = torch.stack([(augmented == p).flatten(1).all(1) for p in possible])
    assert (matches.sum(0) == 1).all()
    assert (matches.sum(1) > 5).all()
    pool.mirror = False
    (augmented, _), *_ = batches(pool, 400, shuffle=False, seed=0, augment=True)
    assert torch.stack([(augmented == p).flatten(1).all(1) for p in possible[:9]]).any(0).all()


def test_probe_sets_are_balanced_in_every_prefix_and_from_train_only():
    splits = open_data("digits")
    images, labels = probe_set(splits, 137, seed=1)
    assert images.shape == (137, 1, 8, 8)
    for n in (10, 40, 137):
        counts = labels[:n].bincount(minlength=10)
        assert counts.max() - counts.min() <= 1
    again, _ = probe_set(splits, 137, seed=1)
    other, _ = probe_set(splits, 137, seed=2)
    assert torch.equal(images, again)
    assert not torch.equal(images, other)
    train = splits.train.images(range(len(splits.train)))
    assert all((train == image).flatten(1).all(1).any() for image in images[:20])
    assert probe_set(splits, 1169)[1].bincount().tolist() == splits.train.labels.bincount().tolist()


@pytest.mark.parametrize("n", [0, 1170])
def test_probe_sets_are_no_larger_than_train(n):
    with pytest.raises(DataError, match="the training part has 1169: ask for 1 to 1169"):
        probe_set(open_data("digits"), n)


def test_probe_sets_are_of_512_images_or_of_all_that_there_are(tmp_path):
    assert len(probe_set(open_data("digits"))[0]) == 512
    write_parquet(tmp_path / "a.parquet", range(40), [0, 1] * 20)
    splits = open_data(f"parquet:{tmp_path / 'a.parquet'}")
    assert len(probe_set(splits)[0]) == len(splits.train) < 40


def test_the_fingerprint_follows_the_content(tmp_path):
    write_parquet(tmp_path / "a.parquet", range(40), [0, 1] * 20)
    before = open_data(f"parquet:{tmp_path / 'a.parquet'}").fingerprint
    write_parquet(tmp_path / "a.parquet", [*range(39), 99], [0, 1] * 20)
    assert open_data(f"parquet:{tmp_path / 'a.parquet'}").fingerprint != before
