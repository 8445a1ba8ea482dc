"""Where files are found, what is refused, and downloads from a server on this machine."""

import gzip
import hashlib
import socket
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import datasets
from datasets import cache, titanic
from datasets.contract import ALTERED, MISSING, OK, Content, DatasetError, File, Form

GOOD = b"a small file that stands for a data set\n" * 50
HELD = b"what the gzip file holds" * 40
PUBLISHED_GZ = gzip.compress(HELD, mtime=1)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


PLAIN = File("plain.bin", {sha256(GOOD): "original", sha256(b"again"): "saved again"}, max_bytes=len(GOOD))
ZIPPED = File("zipped.gz", {sha256(PUBLISHED_GZ): "original"}, 4096, Content(sha256(HELD), len(HELD)))


@pytest.fixture(autouse=True)
def user_cache(monkeypatch, tmp_path):
    """An empty cache, and no $LAYERBENCH_DATA."""
    monkeypatch.delenv(cache.VARIABLE, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(cache, "user_cache", lambda dataset: tmp_path / "cache" / dataset)
    return tmp_path / "cache" / "toy"


@pytest.fixture
def own_folder(monkeypatch, tmp_path):
    """A folder that $LAYERBENCH_DATA names."""
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.setenv(cache.VARIABLE, str(folder))
    return folder


@pytest.fixture
def serve():
    """Start a server on this machine: ``serve({"/path": (status, body, announced length or None)})`` -> its address."""
    servers = []

    def start(answers):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                status, body, length = answers.get(self.path, (404, b"", 0))
                self.send_response(status)
                if length is not None:
                    self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def form_at(*addresses, file=PLAIN):
    """A form of one file with these addresses."""
    return Form("plain file", (replace(file, addresses=addresses),))


def put(folder, name, data):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


# -- finding and checking ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sub_folder", ["", "toy"])
def test_a_file_is_found_in_the_named_folder_and_in_its_sub_folder(own_folder, sub_folder):
    put(own_folder / sub_folder, PLAIN.name, GOOD)
    local = cache.obtain("toy", (form_at(),))
    assert local.paths[PLAIN.name] == own_folder / sub_folder / PLAIN.name
    assert local.read(PLAIN.name) == GOOD


def test_the_named_folder_comes_before_the_cache(own_folder, user_cache):
    put(own_folder, PLAIN.name, GOOD)
    put(user_cache, PLAIN.name, b"again")
    assert cache.locate("toy", (form_at(),)).read(PLAIN.name) == GOOD


def test_the_cache_is_searched_where_the_named_folder_lacks_the_file(own_folder, user_cache):
    put(user_cache, PLAIN.name, b"again")
    local = cache.locate("toy", (form_at(),))
    assert local.read(PLAIN.name) == b"again"
    assert local.check(PLAIN).form == "saved again"


def test_a_named_folder_that_does_not_exist_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "typo"))
    with pytest.raises(DatasetError, match=r"toy: \$LAYERBENCH_DATA is .*typo, which is no folder"):
        cache.locate("toy", (form_at(),))


@pytest.mark.skipif(sys.platform != "linux", reason="XDG is the rule on Linux")
def test_the_cache_is_where_xdg_says(monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.user_cache("toy") == tmp_path / "layerbench" / "datasets" / "toy"


def test_a_complete_form_comes_before_an_incomplete_one(own_folder):
    put(own_folder, PLAIN.name, GOOD)
    put(own_folder, ZIPPED.name, PUBLISHED_GZ)
    first = Form("two files", (PLAIN, replace(PLAIN, name="missing.bin")))
    second = Form("gzip file", (ZIPPED,))
    assert cache.locate("toy", (first, second)).form is second
    assert [file.name for file in cache.locate("toy", (first,)).missing] == ["missing.bin"]


@pytest.mark.parametrize(
    ("data", "form"), [(PUBLISHED_GZ, "original"), (gzip.compress(HELD, 1, mtime=2), "compressed again")]
)
def test_a_gzip_file_is_judged_by_what_it_holds(own_folder, data, form):
    put(own_folder, ZIPPED.name, data)
    local = cache.locate("toy", (Form("gzip file", (ZIPPED,)),))
    check = local.check(ZIPPED)
    assert (check.status, check.form, check.found, check.expected) == (OK, form, sha256(HELD), sha256(HELD))
    assert local.read(ZIPPED.name) == HELD


BAD_FILES = [
    pytest.param(PLAIN, GOOD[:-1], f"{sha256(GOOD[:-1])} instead of {sha256(GOOD)}, 1999 bytes", id="truncated"),
    pytest.param(PLAIN, b"A" + GOOD[1:], sha256(b"A" + GOOD[1:]), id="altered"),
    pytest.param(PLAIN, b"", "0 bytes", id="empty"),
    pytest.param(PLAIN, GOOD + b"x", f"{sha256(GOOD + b'x')}.*larger than the 2000 bytes", id="longer"),
    pytest.param(ZIPPED, PUBLISHED_GZ[:-9], "no sound gzip file", id="truncated gzip"),
    pytest.param(ZIPPED, b"\x00" * 30, "no sound gzip file", id="no gzip"),
    pytest.param(ZIPPED, PUBLISHED_GZ[:-8] + b"\x00" * 8, "no sound gzip file", id="wrong checksum"),
    pytest.param(ZIPPED, gzip.compress(HELD[:-1]), sha256(HELD[:-1]), id="gzip of less"),
    pytest.param(ZIPPED, gzip.compress(HELD[::-1]), sha256(HELD[::-1]), id="gzip of something else"),
    pytest.param(ZIPPED, gzip.compress(bytes(1 << 21)), "holds more than 960 bytes", id="gzip bomb"),
]


@pytest.mark.parametrize(("file", "data", "message"), BAD_FILES)
def test_a_wrong_file_in_the_users_folder_is_refused_by_name_and_hash_and_left_as_it_is(
    own_folder, file, data, message
):
    put(own_folder, file.name, data)
    local = cache.locate("toy", (Form("form", (file,)),))
    with pytest.raises(DatasetError, match=rf"toy: .*{file.name} is altered or truncated \(.*{message}.*replace it"):
        local.read(file.name)
    assert (own_folder / file.name).read_bytes() == data
    assert local.check(file).status == ALTERED


@pytest.mark.parametrize(("file", "data", "message"), BAD_FILES)
def test_a_wrong_file_in_the_cache_is_refused_and_kept_aside(user_cache, file, data, message):
    put(user_cache, file.name, data)
    local = cache.locate("toy", (Form("form", (file,)),))
    assert local.check(file).status == ALTERED
    assert left_in(user_cache) == [file.name]
    with pytest.raises(DatasetError, match=message):
        local.read(file.name)
    (aside,) = left_in(user_cache)
    assert aside.startswith(f"{file.name}.refused-")
    assert (user_cache / aside).read_bytes() == data
    assert cache.locate("toy", (Form("form", (file,)),)).check(file).status == MISSING


def test_a_file_that_vanishes_after_it_was_found_is_an_error_that_names_it(own_folder):
    put(own_folder, PLAIN.name, GOOD)
    local = cache.locate("toy", (form_at(),))
    (own_folder / PLAIN.name).unlink()
    with pytest.raises(DatasetError, match=r"toy: .*plain\.bin cannot be read: No such file"):
        local.read(PLAIN.name)
    assert local.check(PLAIN).status == ALTERED


# -- downloads -----------------------------------------------------------------------------------------------------


def test_a_missing_file_is_downloaded_into_the_cache_once(serve, user_cache):
    address = serve({"/a": (200, GOOD, len(GOOD))})
    assert cache.obtain("toy", (form_at(f"{address}/a"),)).read(PLAIN.name) == GOOD
    assert left_in(user_cache) == [PLAIN.name]
    assert cache.obtain("toy", (form_at("http://127.0.0.1:1/never-asked"),)).read(PLAIN.name) == GOOD


def test_only_the_files_that_are_missing_are_downloaded(serve, own_folder, user_cache):
    put(own_folder, PLAIN.name, GOOD)
    address = serve({"/z": (200, PUBLISHED_GZ, len(PUBLISHED_GZ))})
    form = Form("two files", (PLAIN, replace(ZIPPED, addresses=(f"{address}/z",))))
    local = cache.obtain("toy", (form,))
    assert (local.read(PLAIN.name), local.read(ZIPPED.name)) == (GOOD, HELD)
    assert left_in(user_cache) == [ZIPPED.name]
    assert left_in(own_folder) == [PLAIN.name]


def test_the_next_address_is_tried_when_one_fails(serve):
    address = serve({"/b": (200, GOOD, len(GOOD))})
    assert cache.obtain("toy", (form_at(f"{address}/gone", f"{address}/b"),)).read(PLAIN.name) == GOOD


@pytest.mark.parametrize("length", [len(GOOD) - 1, None], ids=["length announced", "length unknown"])
def test_a_body_with_another_hash_is_refused_and_kept_aside(serve, user_cache, length):
    body = GOOD[:-1]
    address = serve({"/a": (200, body, length)})
    with pytest.raises(DatasetError, match=f"SHA-256 {sha256(body)} instead of {sha256(GOOD)}"):
        cache.obtain("toy", (form_at(f"{address}/a"),))
    assert left_in(user_cache) == [f"{PLAIN.name}.refused-{sha256(body)[:16]}"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((200, GOOD[:700], len(GOOD)), "IncompleteRead|Connection broken"),
        ((200, GOOD * 3, None), "sends more than the 2000 bytes"),
        ((404, b"not here", 8), r"/a \(404 Client Error: Not Found\)"),
        ((500, b"", 0), "500 Server Error"),
    ],
    ids=["connection cut", "too long", "not found", "server error"],
)
def test_a_download_that_fails_leaves_nothing_behind_and_says_why(serve, user_cache, answer, reason):
    address = serve({"/a": answer})
    with pytest.raises(DatasetError, match=reason):
        cache.obtain("toy", (form_at(f"{address}/a"),))
    assert left_in(user_cache) == []


def test_progress_is_drawn_on_the_error_stream_of_a_terminal(serve, monkeypatch, capsys):
    """FORCE_COLOR makes rich take any stream for a terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    address = serve({"/a": (200, GOOD, len(GOOD))})
    cache.obtain("toy", (form_at(f"{address}/a"),))
    output, errors = capsys.readouterr()
    assert output == ""
    assert PLAIN.name in errors
    assert "2.0/2.0 kB" in errors


def test_without_a_server_one_sentence_names_the_data_set_the_addresses_and_the_variable():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        addresses = [f"http://127.0.0.1:{unused.getsockname()[1]}/{name}" for name in "ab"]
        with pytest.raises(DatasetError) as caught:
            cache.obtain("toy", (form_at(*addresses),))
    message = str(caught.value)
    assert message.startswith("toy: plain.bin is neither in $LAYERBENCH_DATA (not set) nor in")
    assert all(f"{address} (no connection)" in message for address in addresses)
    assert message.endswith("set LAYERBENCH_DATA to that folder")
    assert "\n" not in message


def test_an_incomplete_second_form_is_named_when_the_first_cannot_be_downloaded(own_folder):
    put(own_folder, "strip_0", b"")
    strips = Form("strips", tuple(replace(PLAIN, name=f"strip_{k}") for k in range(3)))
    with pytest.raises(DatasetError, match=r"of the strips 2 are missing, first strip_1$"):
        cache.obtain("toy", (form_at(), strips))


def test_a_cache_that_cannot_be_written_is_an_error_that_names_it(user_cache):
    put(user_cache.parent, user_cache.name, b"a file where the folder should be")
    with pytest.raises(DatasetError, match=r"the cache .*toy cannot be written"):
        cache.obtain("toy", (form_at("http://127.0.0.1:1/a"),))


# -- the package's functions ---------------------------------------------------------------------------------------


@pytest.fixture
def served_titanic(serve, monkeypatch):
    """The Titanic with a file made here, on a server on this machine; the server's answers can be changed."""
    header = "PassengerId,Survived,Pclass,Name,Sex,Age,SibSp,Parch,Ticket,Fare,Cabin,Embarked\n"
    data = (header + "".join(f'{n},{n % 2},3,"Doe",male,{n},0,0,T,{n}.5,,S\n' for n in range(1, 892))).encode()
    answers = {"/titanic.csv": (200, data, len(data))}
    file = File("titanic.csv", {sha256(data): "original"}, len(data), addresses=(f"{serve(answers)}/titanic.csv",))
    monkeypatch.setattr(titanic, "DATASET", replace(titanic.DATASET, forms=(Form("CSV file", (file,)),)))
    return answers


def entry_of(name):
    return next(entry for entry in datasets.inventory() if entry.name == name)


def test_load_downloads_what_is_missing(served_titanic):
    split = datasets.load("titanic", scaling=None)
    assert split.x_train.shape == (600, 7)
    assert split.x_test[0].tolist() == [611, 0, 3, 0, 0, 611.5, 0]
    assert split.y_test[:3].tolist() == [1, 0, 1]


def test_the_inventory_knows_a_set_before_and_after_it_is_fetched(served_titanic, tmp_path):
    before = entry_of("titanic")
    assert (before.present, before.path, before.missing) == (False, None, ("titanic.csv",))
    fetched = datasets.fetch("titanic")
    assert (fetched.present, fetched.path, fetched.missing) == (True, tmp_path / "cache" / "titanic", ())
    assert entry_of("titanic") == fetched


def test_sets_without_files_are_always_present_and_have_nothing_to_verify():
    assert [(entry_of(name).present, entry_of(name).form) for name in ("digits", "housing")] == [
        (True, "bundled with scikit-learn"),
        (True, "computed"),
    ]
    assert datasets.fetch("digits").present
    assert datasets.verify("digits") == ()


def test_a_file_altered_in_the_cache_is_refused_once_and_then_downloaded_again(served_titanic):
    path = datasets.fetch("titanic").path / "titanic.csv"
    path.write_bytes(path.read_bytes()[:-1])
    assert [check.status for check in datasets.verify("titanic")] == [ALTERED]
    with pytest.raises(DatasetError, match=r"kept as titanic\.csv\.refused-.*, ask again and it is downloaded"):
        datasets.fetch("titanic")
    assert datasets.fetch("titanic").present
    assert [check.status for check in datasets.verify("titanic")] == [OK]


def test_without_files_every_file_of_the_downloadable_form_is_reported_missing():
    missing = [(check.dataset, check.file) for check in datasets.verify() if check.status == MISSING]
    assert [name for name, _ in missing] == ["mnist"] * 4 + ["cifar10", "olivetti", "titanic"]
    assert ("cifar10", "cifar-10-binary.tar.gz") in missing
    assert len(missing) == len(datasets.verify())


@pytest.mark.parametrize("function", [datasets.fetch, datasets.verify, datasets.splits])
def test_an_unknown_set_is_refused_with_the_known_ones(function):
    with pytest.raises(ValueError, match="unknown data set 'fashion'; known: digits, mnist"):
        function("fashion")
