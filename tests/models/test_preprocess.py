"""Images to inputs, to the bit what Pillow, torchvision and timm give."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from timm_beside import beside
from torch import Tensor

from models import ModelError, Preprocessing, get_info
from models.preprocess import EvaluationTransform, TrainingTransform, imagenet_labels, labels_for
from models.resample import FILTERS, resize

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install pillow")


def photographs() -> dict[str, np.ndarray]:
    """Real photographs where scikit-learn brings them, and a picture with edges, gradients and noise anywhere."""
    rows, columns = np.mgrid[0:375, 0:500]
    noise = np.random.default_rng(0).integers(0, 60, (375, 500, 3))
    drawn = np.stack([rows // 2, columns // 3, 255 * ((rows // 16 + columns // 24) % 2)], -1) * 3 // 4 + noise
    pictures = {"drawn": drawn.clip(0, 255).astype(np.uint8)}
    try:
        from sklearn.datasets import load_sample_image
    except ImportError:
        return pictures
    return pictures | {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}


PICTURES = photographs()


def tensor_of(picture: Any) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


@pytest.fixture(params=sorted(PICTURES))
def picture(request: pytest.FixtureRequest) -> Any:
    return Image.fromarray(PICTURES[request.param])


@pytest.mark.parametrize("interpolation", ["nearest", *FILTERS])
@pytest.mark.parametrize("size", [(331, 441), (96, 500), (375, 120), (700, 900), (299, 299)])
def test_resize_is_pillows(picture: Any, size: tuple[int, int], interpolation: str) -> None:
    height, width = size
    cropped = picture.crop((0, 0, 500, 375))
    expected = tensor_of(cropped.resize((width, height), Image.Resampling[interpolation.upper()]))
    found = resize(tensor_of(cropped), height, width, interpolation)
    if height < 375 and width >= 500:  # from Pillow 13 on, columns first: a few pixels round otherwise
        assert ((found.int() - expected.int()).abs() > 8).float().mean() < 0.01
    else:
        assert torch.equal(found, expected)


def test_torchs_own_resize_is_not_pillows() -> None:
    """The control, and the reason for `models.resample`."""
    picture = Image.fromarray(PICTURES["drawn"])
    expected = tensor_of(picture.resize((441, 331), Image.Resampling.BICUBIC))
    other = torch.nn.functional.interpolate(
        tensor_of(picture)[None].float(), (331, 441), mode="bicubic", antialias=True
    )
    assert not torch.equal(other[0].round().clamp(0, 255).byte(), expected)


@pytest.mark.parametrize("name", ["xception", "xception65"])
@pytest.mark.parametrize("box", [None, (0, 0, 333, 200), (0, 0, 200, 311), (3, 5, 8, 9)])
def test_evaluation_is_what_the_published_numbers_assume(picture: Any, name: str, box: Any) -> None:
    """Written out: resize the shorter side, cut the middle, scale to [-1, 1]."""
    info = get_info(name)
    image = picture if box is None else picture.crop(box)
    target = math.floor(299 / info.crop_pct)
    assert target == {"xception": 333, "xception65": 331}[name]
    short = min(image.size)
    width, height = (target if side == short else int(target * side / short) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - 299) / 2), round((height - 299) / 2)
    cropped = resized.crop((left, top, left + 299, top + 299))
    expected = tensor_of(cropped).double() / 127.5 - 1
    found = EvaluationTransform(info.preprocessing)(image)
    assert found.dtype == torch.float32 and found.shape == (3, 299, 299)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


def test_tensors_and_batches_are_treated_as_images_are(picture: Any) -> None:
    transform = EvaluationTransform(get_info("xception").preprocessing)
    expected = transform(picture)
    pixels = tensor_of(picture)
    before = pixels.clone()
    assert torch.equal(transform(pixels), expected)
    assert torch.equal(transform(torch.stack([pixels, pixels.flip(0)]))[0], expected)
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("name", ["xception", "xception65"])
def test_equal_to_timm(picture: Any, name: str) -> None:
    timm_data = beside("timm.data")
    p = get_info(name).preprocessing
    theirs = timm_data.create_transform(
        input_size=p.input_size, interpolation=p.interpolation, mean=p.mean, std=p.std, crop_pct=p.crop_pct
    )
    for box in (None, (0, 0, 333, 200), (0, 0, 200, 311)):
        image = picture if box is None else picture.crop(box)
        assert torch.equal(EvaluationTransform(p)(image), theirs(image))


def test_training_equal_to_torchvision(picture: Any) -> None:
    transforms = beside("torchvision.transforms")
    p = get_info("xception").preprocessing
    bicubic = transforms.InterpolationMode.BICUBIC
    theirs = transforms.Compose(
        [
            transforms.RandomResizedCrop(299, interpolation=bicubic),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(p.mean, p.std),
        ]
    )
    for seed in range(6):
        torch.manual_seed(seed)
        expected = theirs(picture)
        torch.manual_seed(seed)
        assert torch.equal(TrainingTransform(p)(picture), expected)


def test_training_crops_are_within_their_bounds() -> None:
    transform = TrainingTransform(Preprocessing(), scale=(0.2, 0.5))
    parts = [transform._part(300, 400) for _ in range(200)]
    for top, left, height, width in parts:
        assert 0 <= top <= 300 - height and 0 <= left <= 400 - width
        assert 0.19 < height * width / 120_000 < 0.51 and 0.74 < width / height < 1.35
    assert len(set(parts)) > 190
    assert transform._part(10, 4000) == (0, 1993, 10, 13)  # nothing fits: the largest central part


def test_training_mirrors_half_the_time() -> None:
    pixels = torch.zeros(3, 8, 8, dtype=torch.uint8)
    pixels[..., :4] = 255
    whole = TrainingTransform(Preprocessing(input_size=(3, 8, 8)), scale=(1.0, 1.0), ratio=(1.0, 1.0))
    mirrored = sum(bool(whole(pixels)[0, 0, 0] < 0) for _ in range(400))
    assert 140 < mirrored < 260


def test_other_shapes_of_preprocessing() -> None:
    grey = Image.fromarray(PICTURES["drawn"][..., 0])
    assert EvaluationTransform(Preprocessing())(grey).shape == (3, 299, 299)
    one = Preprocessing((1, 64, 96), "bilinear", 0.9, (0.5,), (0.25,))
    assert EvaluationTransform(one)(Image.fromarray(PICTURES["drawn"])).shape == (1, 64, 96)
    assert EvaluationTransform(Preprocessing())(torch.zeros(1, 20, 30, dtype=torch.uint8)).shape == (3, 299, 299)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.uint8), "found ndarray"),
        (torch.zeros(3, 4, 4), "uint8"),
        (torch.zeros(4, 4, dtype=torch.uint8), "uint8 tensor"),
        (torch.zeros(4, 8, 8, dtype=torch.uint8), "expected 3 channels"),
    ],
)
def test_not_an_image(image: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        EvaluationTransform(Preprocessing())(image)


def test_labels() -> None:
    assert (
        len(imagenet_labels()) == 1000 and imagenet_labels()[0] == "tench" and imagenet_labels()[-1] == "toilet tissue"
    )
    assert labels_for(1001)[:2] == ("background", "tench")
    assert labels_for(3) == ("class 0", "class 1", "class 2")
