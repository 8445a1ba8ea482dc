"""Data sets that need no file, the parsers on small files made here, scaling, limits and splits."""

import ast
import gzip
import io
import struct
import subprocess
import sys
import tarfile
from dataclasses import FrozenInstanceError, dataclass, field
from pathlib import Path

import numpy as np
import pytest

import datasets
from datasets import cache, cifar10, housing, mnist, olivetti, titanic
from datasets.contract import ALTERED, DatasetError, Part
from datasets.prepare import first_per_class, standard, stratified, uniform

PACKAGE = Path(datasets.__file__).parent


@pytest.fixture(autouse=True)
def nothing_on_this_machine(monkeypatch, tmp_path):
    """No test here sees the user's files."""
    monkeypatch.delenv(cache.VARIABLE, raising=False)
    monkeypatch.setattr(cache, "user_cache", lambda name: tmp_path / "cache" / name)


@dataclass
class FakeFiles:
    """Files of a form in memory, and the names that were read."""

    form: object
    contents: dict
    reads: list = field(default_factory=list)

    def read(self, name):
        self.reads.append(name)
        return self.contents[name]


# -- load ----------------------------------------------------------------------------------------------------------


def test_digits_are_images_with_one_channel_and_integer_labels():
    split = datasets.load("digits", scaling=None)
    assert split.x_train.shape == (1438, 8, 8, 1)
    assert split.x_test.shape == (359, 8, 8, 1)
    assert split.x_train.dtype == np.float32
    assert split.y_train.dtype == np.int64
    assert split.x_train.flags.c_contiguous
    assert (split.x_train.min(), split.x_train.max()) == (0, 16)
    assert split.classes == tuple("0123456789")


def test_a_split_is_frozen():
    with pytest.raises(FrozenInstanceError):
        datasets.load("digits").classes = ()


def test_the_split_of_the_digits_never_changes():
    assert datasets.load("digits").y_train[:10].tolist() == [2, 4, 3, 1, 5, 4, 6, 4, 4, 7]


def test_each_split_of_the_digits_differs_and_comes_out_the_same_twice():
    first, again, other = (datasets.load("digits", split=s) for s in (3, 3, 4))
    assert np.array_equal(first.x_train, again.x_train)
    assert not np.array_equal(first.y_train, other.y_train)


def test_housing_is_a_line_with_noise():
    """The least-squares line through the training part recovers slope and intercept within five standard errors."""
    split = datasets.load("housing", scaling=None)
    assert split.classes == ()
    assert split.y_train.dtype == np.float32
    area, price = split.x_train[:, 0].astype(float), split.y_train.astype(float)
    slope, intercept = np.polyfit(area, price, 1)
    error = housing.NOISE / (area.std() * np.sqrt(len(area)))
    assert abs(slope - housing.SLOPE) < 5 * error
    assert abs(intercept - housing.INTERCEPT) < 5 * error * np.sqrt(np.mean(area**2))
    assert np.std(price - slope * area - intercept) == pytest.approx(housing.NOISE, rel=0.2)


@pytest.mark.parametrize("limit", [1, 7])
def test_a_limit_keeps_the_first_rows_of_every_class_in_both_parts(limit):
    whole, limited = datasets.load("digits", scaling=None), datasets.load("digits", limit_per_class=limit, scaling=None)
    for part in ("train", "test"):
        y = getattr(whole, f"y_{part}")
        rows = [row for row, label in enumerate(y) if np.count_nonzero(y[:row] == label) < limit]
        assert len(rows) == 10 * limit
        assert np.array_equal(getattr(limited, f"y_{part}"), y[rows])
        assert np.array_equal(getattr(limited, f"x_{part}"), getattr(whole, f"x_{part}")[rows])


def test_a_limit_above_the_size_of_a_class_keeps_all_of_it():
    assert first_per_class(np.array([1, 0, 1, 1, 0]), 3).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "imagenet"},
            "'imagenet'; known: digits, mnist, cifar10, olivetti, titanic, housing",
        ),
        ({"name": "cache"}, "unknown data set 'cache'"),
        ({"name": "digits", "split": 10}, r"digits has no split 10; known: 0 \.\. 9"),
        ({"name": "digits", "split": -1}, "digits has no split -1"),
        ({"name": "digits", "split": "0"}, "digits has no split '0'"),
        ({"name": "mnist", "split": 1}, "mnist has no split 1; known: 0"),
        ({"name": "digits", "limit_per_class": 0}, "limit_per_class=0 must be a positive whole number"),
        ({"name": "digits", "limit_per_class": 2.5}, r"limit_per_class=2\.5 must be"),
        ({"name": "digits", "limit_per_class": True}, "limit_per_class=True must be"),
        ({"name": "housing", "limit_per_class": 5}, "housing has no classes"),
        ({"name": "digits", "scaling": "unifrom"}, "unknown scaling 'unifrom'; known: uniform, standard, None"),
    ],
)
def test_an_argument_that_cannot_be_is_refused_with_the_known_ones(arguments, message):
    with pytest.raises(ValueError, match=message):
        datasets.load(**arguments)


def test_importing_the_package_imports_no_heavy_library():
    heavy = ("sklearn", "scipy", "pooch", "requests", "PIL", "rich", "pandas", "tensorflow", "impls", "bench")
    code = f"import sys, datasets; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_no_module_can_unpickle_or_extract_onto_the_disk():
    """By their sources: neither a pickle library, nor allow_pickle=True, nor tarfile's extract and extractall."""
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                imported = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not imported & {"pickle", "joblib", "dill", "shelve"}, path
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert node.value.value is False, path
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("extract", "extractall", "unpack_archive"), path


# -- scaling and splits --------------------------------------------------------------------------------------------


def test_uniform_scaling_takes_low_and_high_from_the_training_images_alone():
    x_train, x_test = np.float32([2, 4, 10, 6]).reshape(2, 1, 2, 1), np.float32([0, 14]).reshape(1, 1, 2, 1)
    uniform(x_train, x_test)
    assert x_train.ravel().tolist() == [-1, -0.5, 1, 0]
    assert x_test.ravel().tolist() == [-1.5, 2]


def test_uniform_scaling_gives_each_column_of_a_table_its_own_range_and_keeps_a_constant_one_finite():
    x_train, x_test = np.float32([[0, 100, 3], [4, 300, 3]]), np.float32([[2, 200, 4]])
    uniform(x_train, x_test)
    assert x_train.tolist() == [[-1, -1, -1], [1, 1, -1]]
    assert x_test.tolist() == [[0, 0, 1]]


def test_standardisation_is_that_of_scikit_learn_pixel_by_pixel_and_a_constant_pixel_divides_by_one():
    from sklearn.preprocessing import StandardScaler

    random = np.random.default_rng(0)
    x_train, x_test = (random.normal(50, 20, (n, 3, 4, 2)).astype(np.float32) for n in (2100, 30))
    x_train[:, 1, 2, 0] = 0.1
    scaler = StandardScaler().fit(x_train.reshape(2100, -1).astype(float))
    wanted = [scaler.transform(x.reshape(len(x), -1).astype(float)).reshape(x.shape) for x in (x_train, x_test)]
    standard(x_train, x_test)
    np.testing.assert_allclose(x_train, wanted[0], atol=2e-6)
    np.testing.assert_allclose(x_test, wanted[1], atol=2e-6)
    assert not x_train[:, 1, 2, 0].any()


def test_a_stratified_split_shares_out_every_row_once_and_every_class_alike():
    y = np.repeat([0, 1, 2], [50, 30, 20])
    train, test = stratified(y, 0.2, seed=5)
    assert sorted([*train, *test]) == list(range(100))
    assert np.bincount(y[test]).tolist() == [10, 6, 4]
    assert np.array_equal(test, np.sort(test))
    assert not np.array_equal(train, np.sort(train))


# -- MNIST: IDX ----------------------------------------------------------------------------------------------------


def idx(array, magic=0x0800):
    """The IDX bytes of a uint8 array."""
    return struct.pack(f">{1 + array.ndim}I", magic + array.ndim, *array.shape) + array.tobytes()


def test_an_idx_file_is_read_row_by_row():
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert np.array_equal(mnist.parse_idx(idx(images), 3), images)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "begins no IDX file"),
        (idx(np.zeros((2, 3, 4), np.uint8))[:10], "begins no IDX file"),
        (idx(np.zeros((2, 3, 4), np.uint8), magic=0x0D00), "'00000d03' begins no IDX file"),
        (idx(np.zeros(5, np.uint8)), "'00000801' begins no IDX file of bytes in 3 dimensions"),
        (idx(np.zeros((2, 3, 4), np.uint8))[:-1], r"says \(2, 3, 4\), but 23 values follow"),
        (idx(np.zeros((2, 3, 4), np.uint8)) + b"x", "but 25 values follow"),
        (struct.pack(">4I", 0x0803, 2**32 - 1, 2**32 - 1, 2**32 - 1) + b"x", "but 1 values follow"),
    ],
    ids=["empty", "cut in the header", "floats", "labels", "cut", "too long", "asks for all memory"],
)
def test_an_idx_file_that_is_not_what_its_header_says_is_refused(data, message):
    with pytest.raises(DatasetError, match=message):
        mnist.parse_idx(data, 3)


def test_mnist_is_put_together_from_its_four_files():
    random = np.random.default_rng(1)
    arrays = {
        f"{part}-{kind}-idx{len(shape)}-ubyte.gz": random.integers(0, 255, shape, np.uint8)
        for part, count in (("train", 5), ("t10k", 2))
        for kind, shape in (("images", (count, 28, 28)), ("labels", (count,)))
    }
    train, test = mnist.read(FakeFiles(mnist.FORM, {name: idx(array) for name, array in arrays.items()}), 0)
    assert np.array_equal(train.take(np.array([4, 0]))[..., 0], arrays["train-images-idx3-ubyte.gz"][[4, 0]])
    assert np.array_equal(test.y, arrays["t10k-labels-idx1-ubyte.gz"])


# -- CIFAR-10: archive and strips ----------------------------------------------------------------------------------


def tar_gz(*members):
    """A .tar.gz of (name, bytes) pairs and of ready TarInfo values."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return stream.getvalue()


def link(name, target, size=0):
    """A symbolic link as a member of an archive; its header may lie about a size."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = tarfile.SYMTYPE, target, size
    return info


def test_members_are_read_by_name_in_the_order_asked_for_and_evil_names_never_reach_the_disk(tmp_path, monkeypatch):
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    data = tar_gz(("../evil", b"x"), (str(tmp_path / "evil"), b"x"), ("d/b", b"22"), link("d/c", "/"), ("d/a", b"1"))
    assert cifar10.read_members(data, {"d/a": 1, "d/b": 2}) == {"d/a": b"1", "d/b": b"22"}
    assert [path.name for path in tmp_path.rglob("*")] == ["inside"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tar_gz(("a", b"1")), "the archive lacks b"),
        (tar_gz(("a", b"1"), ("b", b"333")), "b is not one plain file of 2 bytes"),
        (tar_gz(("a", b"1"), ("c", b"22"), link("b", "c", size=2)), "b is not one plain file"),
        (tar_gz(("a", b"1"), ("b", b"22"), ("b", b"23")), "b is not one plain file"),
        (tar_gz(("a", b"1"), ("b", b"22"))[:-20], "no sound gzip file"),
        (gzip.compress(b"no archive at all" * 99), "cannot be read"),
        (b"no gzip", "no sound gzip file"),
        (tar_gz(("a", b"1"), ("b", b"22"), ("padding", bytes(1 << 22))), "holds more than 1048579 bytes"),
    ],
    ids=["missing", "larger", "a link", "twice", "cut", "no tar", "no gzip", "bomb"],
)
def test_an_archive_that_is_not_what_it_should_be_is_refused(data, message):
    with pytest.raises(DatasetError, match=message):
        cifar10.read_members(data, {"a": 1, "b": 2})


def test_a_tar_header_that_claims_more_than_there_is_is_refused():
    info = tarfile.TarInfo("b")
    info.size = 2
    data = gzip.compress(info.tobuf() + b"1")
    with pytest.raises(DatasetError, match=r"cannot be read|lacks b"):
        cifar10.read_members(data, {"b": 2})


@pytest.fixture
def small_batches(monkeypatch):
    """Six binary batches of four images each, by name, and the archive that holds them."""
    monkeypatch.setattr(cifar10, "_BATCH_BYTES", 4 * 3073)
    random = np.random.default_rng(2)
    batches = {name: random.integers(0, 10, (4, 3073), np.uint8) for name in cifar10.BATCHES}
    members = [(f"cifar-10-batches-bin/{name}", batches[name].tobytes()) for name in reversed(batches)]
    contents = {"cifar-10-binary.tar.gz": tar_gz(("cifar-10-batches-bin/readme.html", b"hello"), *members)}
    return batches, FakeFiles(cifar10.ARCHIVE, contents)


def test_a_record_of_the_binary_version_is_a_label_and_three_planes(small_batches):
    batches, files = small_batches
    train, test = cifar10.read(files, 0)
    assert len(train.y) == 20
    record = batches["data_batch_2.bin"][1]
    image = train.take(np.array([5]))[0]
    assert train.y[5] == record[0]
    assert all(image[3, 7, plane] == record[1 + plane * 1024 + 3 * 32 + 7] for plane in range(3))
    assert np.array_equal(test.y, batches["test_batch.bin"][:, 0])


def test_a_batch_with_another_hash_than_the_published_one_is_reported_as_altered(small_batches):
    _, files = small_batches
    checks = list(cifar10.rebuilt(files))
    assert [check.file for check in checks] == list(cifar10.BATCHES)
    assert {check.status for check in checks} == {ALTERED}


def webp(pixels, **options):
    """The WebP bytes of an RGB image."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "WEBP", **({"lossless": True, "method": 0} | options))
    return stream.getvalue()


@pytest.fixture(scope="module")
def strips():
    """Two strips whose image n is filled with the value n % 251, then with n // 251, as bytes by name."""
    numbers = np.arange(1000)
    images = np.zeros((1000, 32, 32, 3), np.uint8)
    images[..., 0], images[..., 1] = (numbers % 251)[:, None, None], (numbers // 251)[:, None, None]
    return {f"test_{k:02d}.webp": webp(images[500 * k : 500 * k + 500].reshape(-1, 32, 3)) for k in range(2)}


def test_only_the_strips_that_hold_a_row_asked_for_are_read(strips):
    labels = {"test_labels.u8": bytes(1000), "train_labels.u8": b""}
    files = FakeFiles(cifar10.STRIPS, strips | labels)
    _, test = cifar10.read(files, 0)
    rows = np.array([999, 500, 742])
    images = test.take(rows)
    assert np.array_equal(images[:, 5, 9, 0], rows % 251)
    assert np.array_equal(images[:, 31, 0, 1], rows // 251)
    assert files.reads == ["train_labels.u8", "test_labels.u8", "test_01.webp"]


def test_the_list_of_the_strips_is_complete():
    names = [f"test_{k:02d}.webp" for k in range(20)] + [f"train_{k:02d}.webp" for k in range(100)]
    assert sorted(file.name for file in cifar10.STRIPS.files) == sorted([*names, "test_labels.u8", "train_labels.u8"])
    assert all(len(file.expected) == 64 for file in cifar10.STRIPS.files)


def test_a_strip_of_another_kind_is_refused(strips):
    strip = strips["test_00.webp"]
    huge = strip[:21] + struct.pack("<I", 16382 | 16382 << 14) + strip[25:]
    lossy = webp(np.zeros((64, 32, 3), np.uint8), lossless=False)
    for data, message in [
        (b"", "no lossless WebP"),
        (b"\x89PNG" + strip[4:], "no lossless WebP"),
        (lossy, "no lossless WebP"),
        (webp(np.zeros((64, 32, 3), np.uint8)), "32 x 64 pixels"),
        (huge, "16383 x 16383 pixels"),
        (strip[: len(strip) // 2], "cannot be decoded"),
    ]:
        with pytest.raises(DatasetError, match=message):
            cifar10.decode_strip(data)


# -- Olivetti ------------------------------------------------------------------------------------------------------


def mat(**variables):
    """The bytes of a MATLAB file."""
    from scipy.io import savemat

    stream = io.BytesIO()
    savemat(stream, variables, do_compression=True)
    return stream.getvalue()


def test_faces_are_stored_column_by_column_and_scaled_to_one_over_all_images():
    faces = np.zeros((4096, 2), np.uint8)
    faces[64 * 3 + 7] = 50, 250
    images = olivetti.normalise(olivetti.parse_mat(mat(faces=faces), (4096, 2)))
    assert images.shape == (2, 64, 64, 1)
    assert np.argwhere(images[..., 0]).tolist() == [[0, 7, 3], [1, 7, 3]]
    assert images[:, 7, 3, 0].tolist() == [np.float32(0.2), 1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (mat(faces=np.zeros((4096, 3))), r"faces is double \(4096, 3\)"),
        (mat(faces=np.zeros((4096, 2), object)), "faces is cell"),
        (mat(other=np.zeros((4096, 2))), "faces is missing"),
        (mat(faces=np.zeros((4096, 2)))[:150], "cannot be parsed"),
        (b"\x80\x04]q\x00.", "cannot be parsed"),
        (b"", "cannot be parsed"),
        (b"x" * 500, "cannot be parsed"),
    ],
    ids=["another shape", "objects", "no faces", "cut", "a pickle", "empty", "garbage"],
)
def test_a_matlab_file_without_the_faces_is_refused(data, message):
    with pytest.raises(DatasetError, match=message):
        olivetti.parse_mat(data, (4096, 2))


@pytest.mark.parametrize("split", range(10))
def test_a_published_split_holds_every_face_once_and_three_test_images_per_person_in_order(split):
    train, test = olivetti.split_indices(split)
    assert sorted([*train, *test]) == list(range(400))
    assert np.array_equal(test // 10, np.repeat(np.arange(40), 3))


def test_an_index_file_with_pickled_objects_is_refused(monkeypatch, tmp_path):
    np.savez(tmp_path / "evil.npz", train_indices=np.array([[{}]], object), test_indices=np.zeros((1, 1)))
    monkeypatch.setattr(olivetti, "SPLITS_FILE", tmp_path / "evil.npz")
    with pytest.raises(ValueError, match="allow_pickle=False"):
        olivetti.split_indices(0)


# -- Titanic -------------------------------------------------------------------------------------------------------

HEADER = "PassengerId,Survived,Pclass,Name,Sex,Age,SibSp,Parch,Ticket,Fare,Cabin,Embarked\n"


def test_a_passenger_becomes_seven_numbers_and_what_is_missing_is_learned_from_the_training_rows():
    text = HEADER + (
        '1,0,3,"Doe, Mr. A",male,20,1,0,T,7.25,,C\n'
        '2,1,1,"Doe, Ms. B",female,30,0,2,T,71.5,C85,C\n'
        '3,0,2,"Doe, Ms. C",female,,0,0,T,8,,S\n'
        '4,1,3,"Doe, Mr. D",male,80,0,0,T,9,,\n'
    )
    rows = titanic.parse(text.encode())
    assert titanic.encode(rows, rows[:3]).tolist() == [
        [20, 0, 3, 1, 0, 7.25, 1],
        [30, 1, 1, 0, 2, 71.5, 1],
        [25, 1, 2, 0, 0, 8, 0],
        [80, 0, 3, 0, 0, 9, 1],
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (HEADER.replace("Fare,", "").encode(), "lacks the columns Fare"),
        (b"", "lacks the columns Survived, Age"),
        (b"\xff\xfe", "cannot be parsed"),
        (HEADER.encode() + b'1,0,3,"Doe', "cannot be parsed"),
    ],
    ids=["column missing", "empty", "no UTF-8", "open quote"],
)
def test_a_table_that_is_not_the_titanic_is_refused(data, message):
    with pytest.raises(DatasetError, match=message):
        titanic.parse(data)


def test_a_part_in_memory_gives_the_rows_asked_for():
    assert Part.of(np.arange(4), np.zeros(4)).take(np.array([3, 1])).tolist() == [3, 1]
