"""The real files: known counts, means and first labels, hashes, and the published preparation of the faces."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import datasets
from datasets import cache, cifar10, mnist, olivetti
from datasets.contract import ALTERED, INEXACT, OK, DatasetError, Form

pytestmark = pytest.mark.usefixtures("data_folder")


@pytest.fixture(scope="module")
def data_folder():
    """The folder that $LAYERBENCH_DATA names; a test that needs it skips with a reason where it is not set."""
    folder = os.environ.get(cache.VARIABLE)
    if not folder:
        pytest.skip("LAYERBENCH_DATA is not set: it names the folder with the files of the data sets")
    return Path(folder)


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    """What is in the user's cache plays no part."""
    monkeypatch.setattr(cache, "user_cache", lambda dataset: tmp_path / "cache" / dataset)


@pytest.fixture
def strips(empty_cache):
    """CIFAR-10 as WebP strips; a test that needs them skips where the folder holds another form."""
    local = cache.locate("cifar10", (cifar10.STRIPS,))
    if local.missing:
        pytest.skip("LAYERBENCH_DATA names a folder without the WebP strips of CIFAR-10")
    return local


@pytest.fixture(scope="module")
def whole_mnist():
    return datasets.load("mnist", scaling=None)


def test_mnist_has_the_known_labels(whole_mnist):
    assert whole_mnist.y_train[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert whole_mnist.y_test[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert np.bincount(whole_mnist.y_train).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(whole_mnist.y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_mnist_has_the_known_mean_and_deviation(whole_mnist):
    assert whole_mnist.x_train.shape == (60_000, 28, 28, 1)
    assert whole_mnist.x_train.mean(dtype=np.float64) == pytest.approx(33.3184, abs=1e-4)
    assert whole_mnist.x_train.std(dtype=np.float64) == pytest.approx(78.5675, abs=1e-4)


def test_standardised_mnist_is_finite_although_its_border_is_constant():
    split = datasets.load("mnist", limit_per_class=100, scaling="standard")
    assert len(split.y_train) == len(split.y_test) == 1000
    assert not split.x_train[:, 0, 0].any()
    assert np.isfinite(split.x_test).all()
    deviations = split.x_train.std(axis=0, dtype=np.float64)
    np.testing.assert_allclose(deviations[deviations > 0], 1, atol=1e-5)


def test_cifar10_has_the_known_labels_means_and_deviations():
    split = datasets.load("cifar10", scaling=None)
    assert split.x_train.shape == (50_000, 32, 32, 3)
    assert split.y_train[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert split.y_test[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert np.bincount(split.y_train).tolist() == [5000] * 10
    assert np.bincount(split.y_test).tolist() == [1000] * 10
    for channel, (mean, deviation) in enumerate(
        [(0.49139968, 0.24703223), (0.48215841, 0.24348513), (0.44653091, 0.26158784)]
    ):
        values = split.x_train[..., channel] / 255
        assert values.mean(dtype=np.float64) == pytest.approx(mean, abs=1e-7)
        assert values.std(dtype=np.float64) == pytest.approx(deviation, abs=1e-7)


def test_a_few_images_of_cifar10_are_those_of_the_whole_set(strips):
    few = datasets.load("cifar10", limit_per_class=3, scaling=None)
    assert few.x_train.shape == (30, 32, 32, 3)
    assert few.y_train[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    first = cifar10.decode_strip(strips.read("train_00.webp"))[:9]
    assert np.array_equal(few.x_train[:9], first)


@pytest.mark.parametrize("split", range(10))
def test_each_split_of_the_faces_is_the_published_preparation_bit_for_bit(split):
    """scikit-learn's convention, the published indices, the published formula; here spelled out in one piece."""
    from scipy.io import loadmat

    faces = np.float32(loadmat(cache.locate("olivetti", (olivetti.FORM,)).paths["olivettifaces.mat"])["faces"].T)
    faces -= faces.min()
    faces /= faces.max()
    images = faces.reshape(400, 64, 64).transpose(0, 2, 1)
    with np.load(olivetti.SPLITS_FILE, allow_pickle=False) as splits:
        train, test = splits["train_indices"][split], splits["test_indices"][split]
    low, high = images[train].min(), images[train].max()
    scaled = ((images - low) / (high - low) * 2.0 - 1.0)[..., np.newaxis]
    loaded = datasets.load("olivetti", split=split)
    assert scaled.dtype == loaded.x_train.dtype == np.float32
    assert loaded.x_train.tobytes() == scaled[train].tobytes()
    assert loaded.x_test.tobytes() == scaled[test].tobytes()
    assert loaded.y_train.tolist() == (train // 10).tolist()
    assert loaded.y_test.tolist() == np.repeat(np.arange(40), 3).tolist()


def test_the_first_split_of_the_faces_begins_with_the_known_people():
    split = datasets.load("olivetti")
    assert split.y_train[:10].tolist() == [36, 10, 10, 4, 1, 0, 34, 26, 3, 7]
    assert (split.x_train.min(), split.x_train.max()) == (-1, 1)


def test_the_titanic_has_the_known_passengers_in_file_order():
    split = datasets.load("titanic", scaling=None)
    assert split.x_train.shape == (600, 7)
    assert split.x_test.shape == (281, 7)
    assert split.y_train[:5].tolist() == [0, 1, 1, 1, 0]
    assert split.y_test.sum() == 101
    np.testing.assert_array_equal(split.x_train[0], np.float32([22, 0, 3, 1, 0, 7.25, 0]))
    np.testing.assert_array_equal(split.x_train[1], np.float32([38, 1, 1, 1, 0, 71.2833, 1]))
    assert np.isfinite(split.x_train).all()


@pytest.mark.parametrize("name", ["mnist", "olivetti", "titanic"])
def test_every_file_verifies(name):
    checks = datasets.verify(name)
    assert [check.status for check in checks] == [OK] * len(checks)
    assert all(check.found == check.expected and check.path for check in checks)
    assert datasets.fetch(name).present


def test_the_strips_of_cifar10_rebuild_the_published_training_batches_and_an_inexact_test_batch(strips, monkeypatch):
    monkeypatch.setattr(cifar10, "DATASET", replace(cifar10.DATASET, forms=(cifar10.STRIPS,)))
    checks = datasets.verify("cifar10")
    files, train, test = checks[:-6], checks[-6:-1], checks[-1]
    assert [check.status for check in files] == [OK] * 122
    for batch in train:
        assert (batch.status, batch.found) == (OK, cifar10.BATCHES[batch.file])
    assert (test.file, test.status, test.found) == ("test_batch.bin", INEXACT, cifar10.INEXACT_TEST_BATCH)
    assert len(cifar10.INEXACT_TEST_IMAGES) == 20
    assert all(str(number) in test.note for number in cifar10.INEXACT_TEST_IMAGES)


def test_one_altered_strip_is_found_and_refused(strips, monkeypatch, tmp_path):
    """Two strips, one of them with a flipped byte in its pixels."""
    names = ("train_labels.u8", "test_labels.u8", "train_00.webp", "test_00.webp")
    for name in names:
        shutil.copyfile(strips.paths[name], tmp_path / name)
    altered = bytearray((tmp_path / "test_00.webp").read_bytes())
    altered[400_000] ^= 1
    (tmp_path / "test_00.webp").write_bytes(altered)
    files = {file.name: file for file in cifar10.STRIPS.files}
    form = Form(cifar10.STRIPS.name, tuple(files[name] for name in names))
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    local = cache.locate("cifar10", (form,))
    assert [local.check(file).status for file in form.files] == [OK, OK, OK, ALTERED]
    train, test = cifar10.read(local, 0)
    assert train.take(np.array([7])).shape == (1, 32, 32, 3)
    with pytest.raises(DatasetError, match=r"cifar10: .*test_00\.webp is altered or truncated \(SHA-256 [0-9a-f]{64}"):
        test.take(np.array([7]))


def test_a_truncated_mnist_file_is_refused_and_nothing_is_loaded(monkeypatch, tmp_path):
    for name, path in cache.locate("mnist", (mnist.FORM,)).paths.items():
        shutil.copyfile(path, tmp_path / name)
    images = tmp_path / "train-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:-1000])
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    with pytest.raises(DatasetError, match=r"mnist: .*train-images-idx3-ubyte\.gz is altered or truncated"):
        datasets.load("mnist")
    assert sorted(check.status for check in datasets.verify("mnist")) == [ALTERED, OK, OK, OK]
