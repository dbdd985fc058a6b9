"""Every recipe of torchvision's and timm's weights gives Pillow's own result of it, at every door.

The references are written out in plain Pillow. TORCHVISION is what torchvision 0.28 (`weights.transforms()`)
says of its weights, TIMM what timm 1.0 (`pretrained_cfg`) says of those whose networks exist here; the
transforms of both packages were compared with `pillows` once.
"""

import dataclasses
import io
import math
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageOps

from cnnjax.data.decode import decode_image
from cnnjax.data.recipe import INTERPOLATIONS, MOST_RESIZED, Recipe, covering, fast, read
from cnnjax.errors import UserError
from cnnjax.models import list_models, variant
from cnnjax.models.variants import Preset, timm_preset
from cnnjax.models.weights.published import published
from cnnjax.runs.facts import preset_recipe
from tests.data.test_sources import SHARED

SAMPLES = SHARED / "imagenet-samples.zip"
BILINEAR, BICUBIC = "bilinear", "bicubic"
TORCHVISION = [
    *((224, resize, BILINEAR) for resize in (230, 232, 236, 242, 256)),
    *((224, resize, BICUBIC) for resize in (224, 232, 238, 246, 256)),
    *((240, 255, BILINEAR), (240, 256, BICUBIC), (256, 260, BICUBIC), (256, 272, BICUBIC)),
    *((288, 288, BICUBIC), (299, 342, BILINEAR), (300, 320, BICUBIC), (380, 384, BICUBIC)),
    *((384, 384, BILINEAR), (384, 384, BICUBIC), (456, 456, BICUBIC), (480, 480, BILINEAR)),
    *(
        (480, 480, BICUBIC),
        (512, 512, BICUBIC),
        (518, 518, BICUBIC),
        (528, 528, BICUBIC),
        (600, 600, BICUBIC),
    ),
]
# timm gives the part of the resized image that is cut.
TIMM = [
    *((160, part, BICUBIC) for part in (0.91, 0.95)),
    *((176, part, BICUBIC) for part in (0.875, 0.9)),
    *((192, part, BICUBIC) for part in (0.875, 0.882, 0.94)),
    *((224, part, BICUBIC) for part in (0.875, 0.9, 0.94, 0.95, 0.965, 1.0)),
    *((240, part, BICUBIC) for part in (0.882, 0.9, 0.904)),
    *((256, part, BICUBIC) for part in (0.875, 0.9, 0.94, 0.95, 1.0)),
    *((288, part, BICUBIC) for part in (0.875, 0.9, 0.95, 1.0)),
    *((299, part, BICUBIC) for part in (0.875, 0.8975, 0.903, 0.94)),
    *((320, part, BICUBIC) for part in (0.875, 0.95, 1.0)),
    *((384, part, BICUBIC) for part in (0.9, 0.95, 1.0)),
    *((208, 0.89, BICUBIC), (260, 0.89, BICUBIC), (300, 0.904, BICUBIC), (300, 1.0, BICUBIC)),
    *((380, 0.922, BICUBIC), (416, 0.95, BICUBIC), (456, 0.934, BICUBIC), (528, 0.942, BICUBIC)),
    *((600, 0.949, BICUBIC), (672, 0.954, BICUBIC)),
    *((176, 0.875, BILINEAR), (224, 0.875, BILINEAR), (256, 0.875, BILINEAR), (256, 0.95, BILINEAR)),
    *((300, 0.904, BILINEAR), (320, 1.0, BILINEAR), (380, 0.92, BILINEAR), (448, 1.0, BILINEAR)),
]
SQUASHED = [(240, 0.9), (384, 1.0), (448, 1.0), (512, 1.0)]  # crop_mode of some of timm's, all bicubic


def photo(height: int, width: int, noise: float, seed: int) -> np.ndarray:
    """uint8 [H, W, 3]: smooth colours with noise."""
    row, column = np.mgrid[0:height, 0:width]
    waves = [128 + 100 * np.sin(column / 17 + k) * np.cos(row / 11 - k) for k in range(3)]
    noisy = np.stack(waves, -1) + np.random.default_rng(seed).normal(0, noise, (height, width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def jpeg(pixels: np.ndarray, mode: str = "RGB", orientation: int = 0) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    if orientation:
        exif[0x112] = orientation
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", quality=90, exif=exif)
    return file.getvalue()


SHAPES = {
    **{"landscape": (375, 500), "portrait": (500, 333), "square": (299, 299), "odd": (341, 343)},
    **{"large": (1203, 1599), "tiny": (9, 7), "wide": (31, 900), "tall": (801, 17), "cut alone": (2, 600)},
}
CORPUS = {
    **{f"smooth {k}": jpeg(photo(*shape, 0, i)) for i, (k, shape) in enumerate(SHAPES.items())},
    **{f"noisy {k}": jpeg(photo(*shape, 60, i)) for i, (k, shape) in enumerate(SHAPES.items())},
    "grey": jpeg(photo(300, 401, 20, 0), "L"),
    "CMYK": jpeg(photo(301, 400, 20, 0), "CMYK"),
    **{f"turned by {n}": jpeg(photo(220, 331, 20, n), orientation=n) for n in (3, 6, 8)},
}


def upright(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as opened:
        return ImageOps.exif_transpose(opened).convert("RGB")


def cut_middle(image: Image.Image, side: int, fill: tuple[int, int, int] = (0, 0, 0)) -> Image.Image:
    """The middle square as torchvision's CenterCrop and timm's CenterCropOrPad cut it."""
    width, height = image.size
    if min(image.size) < side:
        wide, high = max(side, width), max(side, height)
        canvas = Image.new("RGB", (wide, high), fill)
        canvas.paste(image, ((wide - width) // 2, (high - height) // 2))
        image, (width, height) = canvas, canvas.size
    left, top = round((width - side) / 2.0), round((height - side) / 2.0)
    return image.crop((left, top, left + side, top + side))


def pillows(data: bytes, crop: int, resize: int, filter_name: str) -> np.ndarray:
    """The short side resized, then the middle cut out: uint8 [crop, crop, 3]."""
    image, how = upright(data), getattr(Image.Resampling, filter_name.upper())
    width, height = image.size
    if width <= height:
        size = resize, int(resize * height / width)
    else:
        size = int(resize * width / height), resize
    return np.asarray(cut_middle(image.resize(size, how), crop))


def assert_is(ours: np.ndarray, theirs: np.ndarray, name: str) -> None:
    """At most 1 level anywhere, 0.05 in the mean."""
    assert ours.shape == theirs.shape and ours.dtype == np.uint8, name
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 1 and difference.mean() <= 0.05, (name, difference.max(), difference.mean())


FEW = ("noisy odd", "noisy landscape", "turned by 6")


@pytest.mark.parametrize(("crop", "resize", "how"), TORCHVISION)
def test_torchvisions_recipes_are_pillows(crop, resize, how):
    recipe = preset_recipe(Preset((crop, crop, 3), resize=resize, interpolation=how), margin=False)
    for name in FEW:
        ours = decode_image(CORPUS[name], name, 3, recipe)
        assert_is(ours, pillows(CORPUS[name], crop, resize, how), name)


@pytest.mark.parametrize(("crop", "part", "how"), TIMM)
def test_timms_recipes_are_pillows(crop, part, how):
    recipe = preset_recipe(timm_preset((crop, crop, 3), 1000, part, how), margin=False)
    for name in FEW[:1]:
        ours = decode_image(CORPUS[name], name, 3, recipe)
        assert_is(ours, pillows(CORPUS[name], crop, math.floor(crop / part), how), name)


def test_every_published_recipe_is_pillows():
    """Of the tables of weights that have names."""
    data = CORPUS["noisy odd"]
    for preset in dict.fromkeys(dataclasses.replace(row.preset, mean=None, std=None) for row in published()):
        crop, how = preset.input_size[0], preset.interpolation
        ours = decode_image(data, preset, 3, preset_recipe(preset, margin=False))
        if preset.crop_mode == "center":
            theirs = pillows(data, crop, preset.resize or crop, how)
        else:
            assert preset.crop_mode == "squash"
            sides = (preset.resize, preset.resize)
            theirs = np.asarray(cut_middle(upright(data).resize(sides, INTERPOLATIONS[how]), crop))
        assert_is(ours, theirs, str(preset))


@pytest.mark.skipif(not SAMPLES.is_file(), reason=f"needs {SAMPLES}")
@pytest.mark.parametrize(("crop", "resize", "how"), [TORCHVISION[4], TORCHVISION[9], (299, 342, BILINEAR)])
def test_twenty_real_photographs(crop, resize, how):
    recipe = Recipe((resize,), (crop, crop), how)
    with zipfile.ZipFile(SAMPLES) as archive:
        names = [name for name in archive.namelist() if name.lower().endswith((".jpeg", ".jpg"))][::10]
        for name in names[:20]:
            data = archive.read(name)
            assert_is(decode_image(data, name, 3, recipe), pillows(data, crop, resize, how), name)


@pytest.mark.parametrize("name", CORPUS)
def test_every_kind_of_jpeg(name):
    for crop, resize, how in [
        (224, 256, BILINEAR),
        (299, 342, BICUBIC),
        (64, 73, "lanczos"),
        (60, 50, "box"),
    ]:
        recipe = Recipe((resize,), (crop, crop), how)
        assert_is(decode_image(CORPUS[name], name, 3, recipe), pillows(CORPUS[name], crop, resize, how), how)


@pytest.mark.parametrize(("crop", "part"), SQUASHED)
def test_squashed_images_are_pillows(crop, part):
    recipe = preset_recipe(timm_preset((crop, crop, 3), 1000, part, BICUBIC, "squash"), margin=False)
    side = math.floor(crop / part)
    for name in ("noisy portrait", "noisy wide", "smooth tiny"):
        squashed = upright(CORPUS[name]).resize((side, side), Image.Resampling.BICUBIC)
        assert_is(decode_image(CORPUS[name], name, 3, recipe), np.asarray(cut_middle(squashed, crop)), name)


@pytest.mark.parametrize("part", [1.0, 0.9, 0.875])
def test_bordered_images_are_pillows(part):
    """timm's `crop_mode="border"`: the long side fits, and the mean's colour lies around."""
    preset = timm_preset((224, 224, 3), 1000, part, BICUBIC, "border", mean=(0.485, 0.456, 0.406))
    recipe, side = preset_recipe(preset, margin=False), math.floor(224 / part)
    for name in ("noisy portrait", "noisy landscape", "smooth wide", "noisy tall", "noisy square"):
        image = upright(CORPUS[name])
        ratio = max(image.width / side, image.height / side)
        size = max(1, round(image.width / ratio)), max(1, round(image.height / ratio))
        whole = cut_middle(image.resize(size, Image.Resampling.BICUBIC), 224, (124, 116, 104))
        assert_is(decode_image(CORPUS[name], name, 3, recipe), np.asarray(whole), name)


@pytest.mark.parametrize("preset", {variant(name).preset: None for name in list_models()}, ids=str)
def test_the_margin_for_other_views_leaves_the_crop_where_it_is(preset):
    """What is kept around the crop of a network's preset, and then cut off by center_crop."""
    whole, crop = preset_recipe(preset), preset_recipe(preset, margin=False)
    side = preset.input_size[0]
    assert crop.shape == preset.input_size[:2]
    for image in (photo(375, 500, 30, 0), photo(501, 350, 30, 1)):
        kept = whole.apply(image)
        top = (len(kept) - side) // 2  # as in `center_crop`
        np.testing.assert_array_equal(kept[top : top + side, top : top + side], crop.apply(image))


def test_an_image_far_from_square_is_resized_where_it_is_cut_alone():
    """1x20000 at a short side of 256 would have 1.3 billion pixels."""
    image = np.repeat(photo(4, 20_000, 20, 0)[:1], 1, axis=0)
    for recipe in (covering(256, 256), Recipe((288,), (288, 288), BICUBIC)):
        assert np.prod(recipe.resized(*image.shape[:2])) > MOST_RESIZED
        cut = recipe.apply(image)
        np.testing.assert_array_equal(cut, recipe.apply(image[:, 9_900:10_100]))
        assert cut.std() > 5


def test_grey_images_take_the_same_way():
    image = photo(60, 83, 20, 0)[..., :1]
    recipe = Recipe((40,), (44, 36), BICUBIC, fill=(7,))
    (rows, columns), ours = recipe.resized(60, 83), recipe.apply(image)
    whole = np.asarray(Image.fromarray(image[..., 0]).resize((columns, rows), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(ours[2:-2, :, 0], whole[:, round((columns - 36) / 2) :][:, :36])
    assert (ours[:2] == 7).all() and (ours[-2:] == 7).all()


RECIPES = [
    *(covering(8, 8), covering(8, 12, BICUBIC), fast(16), Recipe((9,), (8, 8), "nearest", margin=3)),
    *(Recipe((9, 9), (8, 8), "hamming", "border", (1, 2, 3)), Recipe((9, 11), (8, 10), "box", "squash")),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_recipe_is_recorded_and_read_again(recipe):
    assert read(recipe.record()) == recipe
    if recipe.mode != "square":
        assert recipe.apply(photo(20, 31, 9, 0)).shape == (*recipe.shape, 3)
    assert decode_image(CORPUS["noisy tiny"], "tiny", 3, recipe).shape == (*recipe.shape, 3)


MISTAKES = {
    "unknown interpolation 'cubic'": {"interpolation": "cubic"},
    "unknown crop mode 'centre'": {"mode": "centre"},
    "resize=\\(0,\\)": {"resize": [0]},
    "resize=\\(\\)": {"resize": []},
    "mode=squash; allowed": {"mode": "squash"},
    "crop=\\(8,\\)": {"crop": [8]},
    "margin=-1": {"margin": -1},
    "fill=\\(300,\\)": {"fill": [300]},
    "fill=\\(\\)": {"fill": []},
    "unexpected keyword argument 'order'": {"order": 1},
}


@pytest.mark.parametrize("problem", MISTAKES)
def test_a_recipe_that_is_none_is_told(problem):
    with pytest.raises(UserError, match=problem):
        read(covering(8, 8).record() | MISTAKES[problem])
