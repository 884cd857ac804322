"""Pictures as files hold them: orientation, depth, palettes, frames; files of the operating system among them."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageOps

from netsmith.data.decoding import Encoded, decode_set
from netsmith.data.splits import open_data
from netsmith.errors import DataError
from netsmith.ui.explorer import uploaded

SEEN = np.repeat(np.repeat(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20, 8, axis=0), 8, axis=1)  # 24 high, 32 wide
UNDONE = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}  # the orientation that takes one back


def held(orientation, mode="RGB", pixels=SEEN):
    """The picture as a camera stores it that was held in that way, with its EXIF."""
    image = Image.fromarray(pixels).convert(mode)
    exif = Image.Exif()
    if orientation != 1:
        exif[274] = UNDONE[orientation]
        image.info["exif"] = exif.tobytes()
        image = ImageOps.exif_transpose(image)
    exif[274] = orientation
    return image, exif


def write(folder, name, image, **options):
    """A set of four equal pictures of one class, and the file of the last."""
    (folder / "one").mkdir(parents=True, exist_ok=True)
    for i in range(4):
        image.save(folder / "one" / f"{i}-{name}", **options)
    return folder / "one" / f"3-{name}"


def only(folder, **options):
    return open_data(f"folder:{folder}", **options).train.images([0])[0].mul(255).round().numpy()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "packed.tif"])
def test_orientation_is_honoured_everywhere(tmp_path, name, orientation):
    image, exif = held(orientation)
    options = {"quality": 100} if name.endswith("jpg") else {"lossless": True} if name.endswith("webp") else {}
    file = write(
        tmp_path, name, image, exif=exif, **options, **({"compression": "tiff_lzw"} if "packed" in name else {})
    )
    shown = only(tmp_path)
    assert shown.shape == (3, 24, 32)
    assert abs(shown - SEEN).max() <= 3
    assert np.array_equal(uploaded(file), shown.transpose(1, 2, 0))
    assert np.allclose(only(tmp_path, size=24), SEEN[:, 4:28], atol=3)


def test_orientation_of_bytes_in_a_table_and_of_opened_pictures(tmp_path):
    image, exif = held(6)
    stream = io.BytesIO()
    image.save(stream, "PNG", exif=exif)
    table = pa.table({"image": pa.array([{"bytes": stream.getvalue(), "path": None}] * 8), "label": [0, 1] * 4})
    pq.write_table(table, tmp_path / "train.parquet")
    assert np.array_equal(open_data(f"parquet:{tmp_path}").train.images([0])[0].mul(255).round()[0].numpy(), SEEN)

    def fetch(i):  # as data sets of torchvision open theirs, with and without converting
        opened = Image.open(io.BytesIO(stream.getvalue()))
        return opened.convert("RGB") if i else opened

    encoded = Encoded(fetch, str, torch.zeros(2).long(), ["0", "1"])
    pixels = decode_set(encoded, ("a",)).images([0, 1])
    assert np.array_equal(pixels[:, 0].mul(255).round().numpy(), np.stack([SEEN, SEEN]))


def test_masks_turn_with_their_pictures(tmp_path):
    classes = (SEEN % 3).astype(np.uint8)
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for i in range(4):
        image, exif = held(6)
        image.save(tmp_path / "images" / f"{i}.jpg", exif=exif)
        mask, exif = held(6, "L", classes)
        if i % 2:  # drawn on the stored picture, or on the one that was shown
            mask.save(tmp_path / "masks" / f"{i}.png", exif=exif)
        else:
            Image.fromarray(classes).save(tmp_path / "masks" / f"{i}.png")
    train = open_data(f"masks:{tmp_path}").train
    assert all(np.array_equal(mask, classes) for mask in train.targets(range(len(train))).numpy())
    held(6, "L", classes)[0].save(tmp_path / "masks" / "0.png")
    with pytest.raises(DataError, match=r"0\.png' has 24x32 pixels, its image 32x24 once both are upright \(EXIF\)"):
        open_data(f"masks:{tmp_path}")


def test_damaged_exif_leaves_a_picture_as_it_is_stored(tmp_path):
    file = write(tmp_path, "a.webp", Image.fromarray(SEEN).convert("RGB"), exif=b"Exif\0\0no exif", lossless=True)
    assert np.array_equal(only(tmp_path)[0], SEEN)
    assert np.array_equal(uploaded(file)[..., 0], SEEN)


def sixteen(kind="<u2"):
    wide = (SEEN.astype(np.uint16) << 8) + 99
    mode = "I;16B" if kind == ">u2" else "I;16"
    return Image.frombytes(mode, (32, 24), wide.astype(kind).tobytes())


@pytest.mark.parametrize(
    ("name", "image", "options"),
    [
        ("deep.png", sixteen(), {}),
        ("deep.tif", sixteen(), {}),
        ("other-end.tif", sixteen(">u2"), {}),
        ("deep.pgm", Image.fromarray((SEEN.astype(np.int32) << 8) + 99), {}),
        ("grey.png", Image.fromarray(SEEN), {}),
        ("opaque.png", Image.merge("LA", [Image.fromarray(SEEN), Image.fromarray(SEEN)]), {}),
        ("key.png", Image.fromarray(SEEN), {"transparency": 20}),
    ],
)
def test_grey_of_any_depth_is_scaled_and_opacity_dropped(tmp_path, name, image, options):
    file = write(tmp_path, name, image, **options)
    assert np.array_equal(only(tmp_path), SEEN[None])
    assert np.array_equal(uploaded(file), SEEN)


def test_twelve_bits_are_scaled_by_their_own_range(tmp_path):
    numbers = SEEN.astype(np.uint16).reshape(-1, 2) << 4
    packed = np.stack([numbers[:, 0] >> 4, (numbers[:, 0] & 15) << 4 | numbers[:, 1] >> 8, numbers[:, 1] & 255], axis=1)
    sixteen().save(tmp_path / "a.tif")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    with Image.open(tmp_path / "a.tif") as image:
        start = dict(vars(image)["tag_v2"])[273][0]
    depth = data.index((258).to_bytes(2, "little") + (3).to_bytes(2, "little")) + 8
    data[depth] = 12
    data[start : start + packed.size] = packed.astype(np.uint8).tobytes()
    (tmp_path / "a.tif").write_bytes(data)
    assert np.array_equal(uploaded(tmp_path / "a.tif"), SEEN)


def test_grey_negatives_are_developed(tmp_path):
    """A TIFF may say that 0 is white (photometric interpretation, tag 262)."""
    for image in (sixteen(), Image.fromarray(SEEN)):
        image.save(tmp_path / "a.tif")
        data = bytearray((tmp_path / "a.tif").read_bytes())
        data[data.index((262).to_bytes(2, "little") + (3).to_bytes(2, "little")) + 8] = 0
        (tmp_path / "a.tif").write_bytes(data)
        assert np.array_equal(uploaded(tmp_path / "a.tif"), 255 - SEEN)


@pytest.mark.parametrize(
    ("name", "pixels", "message"),
    [
        ("a.tif", SEEN.astype(np.float32) / 255, r"a\.tif' is of mode F \(fractions\), which defines neither black"),
        ("a.tif", SEEN.astype(np.int32), r"a\.tif' is of mode I \(whole numbers of 32 bits\), which defines neither"),
        ("a.pfm", SEEN.astype(np.float32), r"is of mode F \(fractions\)"),
    ],
)
def test_numbers_without_a_range_are_refused(tmp_path, name, pixels, message):
    file = write(tmp_path, name, Image.fromarray(pixels))
    with pytest.raises(DataError, match="what was uploaded is of mode"):
        uploaded(file)
    file = file.rename(file.with_suffix(".tif"))  # .pfm is not looked for
    for other in range(3):
        (tmp_path / "one" / f"{other}-{name}").unlink()
    (tmp_path / "two").mkdir()
    for i in range(3):
        Image.fromarray(SEEN).save(tmp_path / "two" / f"{i}.png")
    with pytest.raises(DataError, match=message.replace("pfm", "tif")):
        open_data(f"folder:{tmp_path}")


def palette(**options):
    image = Image.fromarray((SEEN // 80).astype(np.uint8))
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    return image, options


@pytest.mark.parametrize(
    ("name", "image", "options"),
    [
        ("plain.png", *palette()),
        ("table.png", *palette(transparency=b"\x00\x80\xff")),
        ("one.png", *palette(transparency=1)),
        ("frames.gif", *palette(save_all=True, append_images=[Image.new("RGB", (32, 24))])),
        (
            "frames.webp",
            palette()[0].convert("RGB"),
            {"save_all": True, "lossless": True, "append_images": [held(1)[0]]},
        ),
        ("alpha.png", palette()[0].convert("RGBA"), {}),
        ("print.tif", palette()[0].convert("RGB").convert("CMYK"), {}),
    ],
)
def test_colours_are_those_of_the_first_frame_without_opacity(tmp_path, name, image, options):
    file = write(tmp_path, name, image, **options)
    expected = 200 * np.stack([channel == SEEN // 80 for channel in range(3)])
    assert np.array_equal(only(tmp_path), expected)
    assert np.array_equal(uploaded(file), expected.transpose(1, 2, 0))


def test_cmyk_photographs_and_bits(tmp_path):
    write(tmp_path / "cmyk", "a.jpg", palette()[0].convert("RGB").convert("CMYK"), quality=100, subsampling=0)
    expected = 200 * np.stack([channel == SEEN // 80 for channel in range(3)])
    assert abs(only(tmp_path / "cmyk") - expected).max() <= 4
    write(tmp_path / "bits", "a.png", Image.fromarray(SEEN > 100))
    assert np.array_equal(only(tmp_path / "bits"), 255 * (SEEN[None] > 100))


def test_files_of_the_operating_system_are_passed_over(tmp_path):
    for kind in ("folder/cat", "folder/dog", "masks/images", "masks/masks", "parquet/train"):
        (tmp_path / kind).mkdir(parents=True)
        (tmp_path / kind / ".DS_Store").write_bytes(b"\0")
        (tmp_path / kind / "Thumbs.db").write_bytes(b"\0")
        (tmp_path / kind / "desktop.ini").write_text("[.ShellClassInfo]")
        for i in range(4):
            if kind.startswith("parquet"):
                break
            pixels = SEEN % 2 if "/masks" in kind else SEEN
            Image.fromarray(pixels.astype(np.uint8) + (i if "/masks" not in kind else i % 2)).save(
                tmp_path / kind / f"{i}.png"
            )
            (tmp_path / kind / f"._{i}.png").write_bytes(b"\0\x05\x16\x07 Mac OS X")
    for source in ("folder", "masks", "parquet"):
        for name in ("__MACOSX", "@eaDir", ".ipynb_checkpoints"):
            (tmp_path / source / name).mkdir()
            (tmp_path / source / name / "0.png").write_bytes(b"no image")
            (tmp_path / source / name / "0.parquet").write_bytes(b"no table")
    (tmp_path / "folder" / "cat" / "@eaDir").mkdir()
    (tmp_path / "folder" / "cat" / "@eaDir" / "0.png").write_bytes(b"no image")
    rows = pa.array([{"bytes": (tmp_path / "folder/cat/0.png").read_bytes(), "path": None}] * 8)
    pq.write_table(pa.table({"image": rows, "label": [0, 1] * 4}), tmp_path / "parquet/train/0.parquet")
    (tmp_path / "parquet/train/._0.parquet").write_bytes(b"\0\x05\x16\x07 Mac OS X")
    for source in ("folder", "masks", "parquet"):
        splits = open_data(f"{source}:{tmp_path / source}")
        assert len(splits.classes) == 2
        assert len(splits.train) + len(splits.validation) + len(splits.test) == (4 if source == "masks" else 8)
    assert open_data(f"folder:{tmp_path}/folder").classes == ("cat", "dog")
