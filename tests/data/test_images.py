"""Whatever a camera, a phone or a vandal can put into a file becomes upright sRGB pixels, or one line of error."""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms
from torch import Tensor

from nopair.data.headers import MAX_PIXELS
from nopair.data.images import decode_image, encode, fit, load_image, restore, save_image
from nopair.data.records import measure
from nopair.errors import ImageError, OutputError

FORMATS = ("PNG", "JPEG", "WEBP")
ORIENTATION = 0x0112


def _values(height: int = 12, width: int = 20) -> np.ndarray:
    """A smooth picture that no turn or flip maps to itself, so that JPEG keeps it and orientation shows."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([250 * x / (width - 1), 250 * y / (height - 1), 125 + 0 * x], axis=2).round().astype(np.uint8)


def _expected(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32) / 255).permute(2, 0, 1)


def _file(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    lossless = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}, "PNG": {}}[kind]
    image.save(buffer, format=kind, **lossless, **options)
    return buffer.getvalue()


def _png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG written by hand: any depth, and sizes that its data need not have."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body)) for tag, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _srgb() -> bytearray:
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = bytes(12)  # when it was made: the same bytes every time
    return profile


def _load(tmp_path: Path, content: bytes, name: str = "image.png") -> Tensor:
    path = tmp_path / name
    path.write_bytes(content)
    return load_image(path)


# Reading --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["photo", "photo.png", "Фото 写真 été.JPG"])
def test_the_content_counts_and_not_the_name(tmp_path: Path, kind: str, name: str) -> None:
    pixels = _load(tmp_path, _file(Image.fromarray(_values()), kind), name)
    tolerance = 0.03 if kind == "JPEG" else 1e-6
    torch.testing.assert_close(pixels, _expected(_values()), atol=tolerance, rtol=0)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path: Path, kind: str, orientation: int) -> None:
    upright = _values()
    # How the sensor stored the picture: the TIFF standard says which side of it row 0 and column 0 are.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: np.rot90(upright, 2),
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    pixels = _load(tmp_path, _file(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif))
    torch.testing.assert_close(pixels, _expected(upright), atol=0.03 if kind == "JPEG" else 1e-6, rtol=0)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    pixels = _load(tmp_path, _file(Image.fromarray(_values()), "PNG", exif=exif))
    torch.testing.assert_close(pixels, _expected(_values()))


def test_turning_a_16_bit_image_keeps_its_depth(tmp_path: Path) -> None:
    levels = np.array([[0, 1, 2], [300, 40000, 65535]], dtype=np.uint16)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    pixels = _load(tmp_path, _file(Image.fromarray(levels), "PNG", exif=exif))
    wanted = torch.from_numpy(np.rot90(levels, -1).astype(np.float32) / 65535)
    torch.testing.assert_close(pixels, wanted.repeat(3, 1, 1), atol=1e-7, rtol=0)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_every_mode_of_png_reads_as_what_it_shows(tmp_path: Path, mode: str) -> None:
    shown = Image.fromarray(_values()).convert(mode)
    pixels = _load(tmp_path, _file(shown, "PNG"))
    torch.testing.assert_close(pixels, _expected(np.asarray(shown.convert("RGB"))))


def test_cmyk_reads_as_what_it_shows(tmp_path: Path) -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    pixels = _load(tmp_path, _file(red, "JPEG"), "print.jpg")
    wanted = torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 16, 16)
    torch.testing.assert_close(pixels, wanted, atol=0.02, rtol=0)


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4), (4, 2), (0, 1)])
def test_16_bit_png_of_every_kind(tmp_path: Path, colour: int, channels: int) -> None:
    half = struct.pack(">H", 0x8000)
    opaque = struct.pack(">H", 0xFFFF)
    one = half * channels if colour in (0, 2) else half * (channels - 1) + opaque
    pixels = _load(tmp_path, _png(3, 2, 16, colour, (b"\0" + one * 3) * 2))
    torch.testing.assert_close(pixels, torch.full((3, 2, 3), 0.5), atol=0.003, rtol=0)


@given(colour=st.tuples(*[st.integers(0, 255)] * 4))
def test_transparency_is_laid_over_white(tmp_path_factory: pytest.TempPathFactory, colour: tuple[int, ...]) -> None:
    image = Image.new("RGBA", (2, 2), colour)
    pixels = _load(tmp_path_factory.getbasetemp(), _file(image, "PNG"), "rgba.png")
    red, green, blue, alpha = (value / 255 for value in colour)
    wanted = torch.tensor([red, green, blue]) * alpha + 1 - alpha
    torch.testing.assert_close(pixels, wanted[:, None, None].expand(3, 2, 2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["P", "P with a range", "L", "RGB", "1", "I;16", "LA"])
def test_every_way_to_be_transparent_shows_white(tmp_path: Path, kind: str) -> None:
    files: dict[str, Callable[[], bytes]] = {
        "P": lambda: _file(Image.new("P", (4, 4), 0), "PNG", transparency=0),
        "P with a range": lambda: _file(Image.new("P", (4, 4), 0), "PNG", transparency=b"\0\xff"),
        "L": lambda: _file(Image.new("L", (4, 4), 7), "PNG", transparency=7),
        "RGB": lambda: _file(Image.new("RGB", (4, 4), (9, 8, 7)), "PNG", transparency=(9, 8, 7)),
        "1": lambda: _file(Image.new("1", (4, 4), 0), "PNG", transparency=0),
        "I;16": lambda: _png(4, 4, 16, 0, (b"\0" + b"\x12\x34" * 4) * 4, (b"tRNS", b"\x12\x34")),
        "LA": lambda: _file(Image.new("LA", (4, 4), (3, 0)), "PNG"),
    }
    torch.testing.assert_close(_load(tmp_path, files[kind]()), torch.ones(3, 4, 4))


def test_an_embedded_profile_is_applied(tmp_path: Path) -> None:
    """A profile whose red and green have changed places: what the file calls red is green."""
    profile = _srgb()
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    image = Image.new("RGB", (4, 4), (255, 0, 0))
    wanted = torch.tensor([0.0, 1, 0])[:, None, None].expand(3, 4, 4)
    torch.testing.assert_close(
        _load(tmp_path, _file(image, "PNG", icc_profile=bytes(profile))), wanted, atol=0.02, rtol=0
    )


def test_an_srgb_profile_changes_nothing_that_shows(tmp_path: Path) -> None:
    pixels = _load(tmp_path, _file(Image.fromarray(_values()), "PNG", icc_profile=bytes(_srgb())))
    torch.testing.assert_close(pixels, _expected(_values()), atol=1.01 / 255, rtol=0)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "metadata", [{"icc_profile": b"no profile"}, {"exif": b"Exif\0\0no exif"}, {"exif": b"Exif\0\0"}]
)
def test_unreadable_metadata_counts_as_absent(tmp_path: Path, kind: str, metadata: dict[str, bytes]) -> None:
    pixels = _load(tmp_path, _file(Image.fromarray(_values()), kind, **metadata))
    torch.testing.assert_close(pixels, _expected(_values()), atol=0.03, rtol=0)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_first_frame_of_an_animation(tmp_path: Path, kind: str) -> None:
    frames = [Image.fromarray(_values()), Image.new("RGB", (20, 12), "red")]
    content = _file(frames[0], kind, save_all=True, append_images=frames[1:])
    torch.testing.assert_close(_load(tmp_path, content), _expected(_values()), atol=0.02, rtol=0)


# What cannot be read --------------------------------------------------------------------------------------------------


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


_PHOTO = _file(Image.effect_noise((90, 70), 60).convert("RGB"), "PNG")
_BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda d: d / "no.png", "no such image"),
    "a folder": (lambda d: d, "is a folder"),
    "empty": (lambda d: _write(d / "empty.png", b""), "is an empty file"),
    "text": (lambda d: _write(d / "text.png", b"once upon a time" * 9), "not a readable PNG, JPEG or WebP"),
    "another format": (lambda d: _write(d / "a.gif", b"GIF89a\1\0\1\0\0\0\0;"), "not a readable PNG, JPEG or WebP"),
    "within a file": (lambda d: _write(d / "file", b"x") / "a.png", "cannot be read (Not a directory)"),
    "a pipe": (lambda d: _fifo(d / "pipe.png"), "is not an ordinary file"),
    "an overlong name": (lambda d: d / ("a" * 300 + ".png"), "cannot be read (File name too long)"),
    "a null byte": (lambda d: d / "a\0b.png", "cannot be read (embedded null byte)"),
    "huge": (lambda d: _write(d / "huge.png", _png(8001, 8000, 8, 2, b"\0")), "too large (8001x8000, over 64 million"),
    "huger": (lambda d: _write(d / "huger.png", _png(10000, 9500, 8, 2, b"\0")), "too large, over 64 million"),
    "a bomb": (lambda d: _write(d / "bomb.png", _png(2**20, 2**20, 8, 2, b"\0")), "too large, over 64 million"),
    "without pixels": (lambda d: _write(d / "zero.png", _png(0, 5, 8, 2, b"")), "no pixels|not a readable"),
    "cut PNG": (lambda d: _write(d / "cut.png", _PHOTO[: len(_PHOTO) // 2]), "damaged or cut short"),
    "PNG without its end": (lambda d: _write(d / "cut.png", _PHOTO[:-200]), "damaged or cut short"),
    "cut text bomb": (
        lambda d: _write(d / "t.png", _png(1, 1, 8, 2, b"\0\0\0\0", (b"zTXt", b"a\0\0" + zlib.compress(bytes(2**24))))),
        "damaged or cut short",
    ),
    "fewer rows than said": (lambda d: _write(d / "short.png", _png(9, 9, 8, 2, b"\0" * 30)), "damaged or cut short"),
}


@pytest.mark.parametrize("problem", _BAD)
def test_what_cannot_be_read_is_told_in_one_line(tmp_path: Path, problem: str) -> None:
    make, said = _BAD[problem]
    path = make(tmp_path)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(ImageError) as error:
            load_image(path)
    assert not warned  # one line, not two
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert any(part in str(error.value) for part in said.split("|"))


@pytest.mark.parametrize("problem", ["text", "another format", "huge", "huger", "a bomb", "without pixels", "cut PNG"])
def test_what_cannot_be_read_is_not_measured(tmp_path: Path, problem: str) -> None:
    make, said = _BAD[problem]
    content = make(tmp_path).read_bytes()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(ImageError) as error:
            measure(content, "it")
    assert not warned
    assert str(error.value).startswith("it: ")
    assert any(part in str(error.value) for part in said.split("|"))


@pytest.mark.parametrize("kind", FORMATS)
def test_what_has_unreadable_metadata_is_measured_as_it_is_read(kind: str) -> None:
    content = _file(Image.fromarray(_values()), kind, exif=b"Exif\0\0no exif")
    facts = measure(content, "it")
    assert (facts.height, facts.width) == decode_image(content, "it").shape[1:]


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_cut_files_are_refused(tmp_path: Path, kind: str, share: float) -> None:
    content = _file(Image.effect_noise((90, 70), 60).convert("RGB"), kind)
    with pytest.raises(ImageError, match=r"damaged or cut short|not a readable"):
        _load(tmp_path, content[: int(len(content) * share)])


def test_an_unreadable_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path / "secret.png", _PHOTO)

    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ImageError, match=r"secret\.png: cannot be read \(Permission denied\)"):
        load_image(path)


def test_the_largest_size_is_read_before_a_pixel_is(tmp_path: Path) -> None:
    """A file of 64 million pixels passes the size check, and only then turns out to have no data."""
    assert MAX_PIXELS == 8000 * 8000
    with pytest.raises(ImageError, match="damaged or cut short"):
        _load(tmp_path, _png(8000, 8000, 1, 0, b"\0"))


@given(data=st.data(), kind=st.sampled_from(FORMATS))
def test_random_damage_gives_pixels_or_an_image_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kind: str
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    content = bytearray(_file(Image.fromarray(_values()), kind, exif=exif, icc_profile=bytes(_srgb())))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(len(content) // 2, len(content)))]
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    try:
        pixels = load_image(path)
    except ImageError:
        return
    assert pixels.dtype == torch.float32
    assert 0 <= pixels.min() <= pixels.max() <= 1


# Fitting --------------------------------------------------------------------------------------------------------------

sides = st.integers(1, 90)


@given(rows=sides, columns=sides, height=st.integers(8, 70), width=st.integers(8, 70))
def test_fit_and_restore_mirror_each_other(rows: int, columns: int, height: int, width: int) -> None:
    pixels = torch.rand(3, rows, columns)
    fitted = fit(pixels, height, width)
    top, left, inner_height, inner_width = fitted.box
    assert fitted.pixels.shape == (3, height, width)
    assert fitted.size == (rows, columns)
    assert 0 <= top <= top + inner_height <= height
    assert 0 <= left <= left + inner_width <= width
    assert inner_height == height or inner_width == width  # as large as will go
    scale = min(height / rows, width / columns)  # and no more squashed than whole pixels ask for
    assert abs(inner_height - max(1, rows * scale)) <= 0.5
    assert abs(inner_width - max(1, columns * scale)) <= 0.5
    back = restore(fitted.pixels, fitted)
    assert back.shape == pixels.shape
    assert 0 <= back.min() <= back.max() <= 1
    assert abs(top - (height - top - inner_height)) <= 1  # centred
    assert abs(left - (width - left - inner_width)) <= 1


@given(rows=sides, columns=sides)
def test_one_colour_comes_back_as_itself(rows: int, columns: int) -> None:
    colour = torch.tensor([0.2, 0.5, 0.9])[:, None, None].expand(3, rows, columns)
    fitted = fit(colour, 64, 64)
    torch.testing.assert_close(fitted.pixels, colour[:, :1, :1].expand(3, 64, 64), atol=1e-5, rtol=0)
    torch.testing.assert_close(restore(fitted.pixels, fitted), colour, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("rows", "columns"), [(48, 200), (200, 48), (40, 30), (641, 427)])
def test_a_smooth_picture_comes_back(rows: int, columns: int) -> None:
    picture = _expected(_values(rows, columns))
    fitted = fit(picture, 64, 64)
    torch.testing.assert_close(restore(fitted.pixels, fitted), picture, atol=0.03, rtol=0)


def test_the_models_own_size_passes_bit_for_bit() -> None:
    pixels = torch.rand(3, 64, 64)
    fitted = fit(pixels, 64, 64)
    assert torch.equal(fitted.pixels, pixels)
    assert torch.equal(restore(fitted.pixels, fitted), pixels)


def test_margins_repeat_the_edge() -> None:
    fitted = fit(torch.rand(3, 20, 64), 64, 64)
    assert fitted.box == (22, 0, 20, 64)
    assert torch.equal(fitted.pixels[:, :22], fitted.pixels[:, 22:23].expand(3, 22, 64))
    assert torch.equal(fitted.pixels[:, 42:], fitted.pixels[:, 41:42].expand(3, 22, 64))


def test_an_edit_of_the_margins_does_not_reach_the_picture() -> None:
    picture = torch.rand(3, 32, 64)
    fitted = fit(picture, 64, 64)
    edited = torch.zeros(3, 64, 64)
    edited[:, 16:48] = fitted.pixels[:, 16:48]
    torch.testing.assert_close(restore(edited, fitted), picture)


def test_restore_refuses_another_size() -> None:
    with pytest.raises(ValueError, match="expected an image of shape"):
        restore(torch.rand(3, 32, 32), fit(torch.rand(3, 9, 9), 64, 64))


# Writing --------------------------------------------------------------------------------------------------------------


@given(values=st.integers(1, 20).flatmap(lambda h: st.integers(1, 20).map(lambda w: (h, w))), seed=st.integers(0, 99))
def test_png_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, values: tuple[int, int], seed: int
) -> None:
    shape = (3, *values)
    pixels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)) / 255
    path = tmp_path_factory.getbasetemp() / "Übung ☃.png"
    save_image(pixels, path)
    assert torch.equal(load_image(path), pixels)


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "PNG"), ("a.PNG", "PNG"), ("b.jpg", "JPEG"), ("b.JpEg", "JPEG"), ("c.webp", "WEBP")]
)
def test_the_suffix_picks_the_format(tmp_path: Path, name: str, kind: str) -> None:
    save_image(_expected(_values()), tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert image.format == kind
    torch.testing.assert_close(load_image(tmp_path / name), _expected(_values()), atol=0.1, rtol=0)


def test_values_outside_the_range_are_clamped(tmp_path: Path) -> None:
    save_image(torch.tensor([-3.0, 0.5, 7.0])[:, None, None].expand(3, 2, 2), tmp_path / "a.png")
    assert load_image(tmp_path / "a.png")[:, 0, 0].tolist() == pytest.approx([0, 128 / 255, 1])


_UNWRITABLE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no suffix": (lambda d: d / "image", "cannot tell the image format"),
    "an unknown suffix": (lambda d: d / "image.tiff", "cannot tell the image format"),
    "a folder": (lambda d: _made(d / "folder"), "is a folder; name a file in it"),
    "no folder": (lambda d: d / "no" / "a.png", "cannot be written"),
    "a file for a folder": (lambda d: _write(d / "file", b"x") / "a.png", "cannot be written"),
    "a null byte": (lambda d: d / "a\0.png", "cannot be written"),
    "an overlong name": (lambda d: d / ("a" * 300 + ".png"), "cannot be written"),
}


@pytest.mark.parametrize("problem", _UNWRITABLE)
def test_what_cannot_be_written_is_told_in_one_line(tmp_path: Path, problem: str) -> None:
    make, said = _UNWRITABLE[problem]
    path = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError) as error:
        save_image(torch.rand(3, 4, 4), path)
    assert said in str(error.value)
    assert str(error.value).startswith(f"{path}: ")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_of_that_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        save_image(torch.rand(3, 4, 4), tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_an_image_too_large_for_its_format(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a\.webp: a 17000x1 image does not go into a WEBP file"):
        save_image(torch.rand(3, 1, 17000), tmp_path / "a.webp")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_image_is_not_written(tmp_path: Path, value: float) -> None:
    with pytest.raises(OutputError, match="not numbers"):
        save_image(torch.full((3, 4, 4), value), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_encode_takes_any_precision() -> None:
    pixels = torch.rand(3, 8, 8)
    assert encode(pixels.double(), "PNG") == encode(pixels, "PNG")
    assert encode(pixels.requires_grad_(), "PNG") == encode(pixels.detach(), "PNG")
