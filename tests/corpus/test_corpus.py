"""Corpora: what is read, what is held out, tokens on disk, and what is refused."""

import errno
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mesaopt import cli
from mesaopt.config import TextConfig
from mesaopt.corpus import (
    SPLITS,
    Tokens,
    documents_of,
    load_corpus,
    load_tokenizer,
    prepare,
    split_of,
)
from mesaopt.errors import ConfigError, RunError
from mesaopt.tasks import Text

TEXT = "to be, or not to be: that is the question. " * 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of 200 small documents, with some that are no part of the corpus."""
    for number in range(200):
        path = tmp_path / "texts" / f"part-{number % 3}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number}: {TEXT[number:]}")
    for name in (".hidden", ".git/config", "__pycache__/a.pyc"):
        path = tmp_path / "texts" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("no part of it")
    return tmp_path / "texts"


def everything(tokens: Tokens) -> list[int]:
    return tokens.stretches(np.array([0]), len(tokens))[0].tolist()


def test_a_folder_is_read_with_all_folders_in_it_and_divided_by_document(folder: Path) -> None:
    documents = documents_of(str(folder))
    assert len(documents) == 200
    assert [name for name, _ in documents] == sorted(name for name, _ in documents)
    corpus = load_corpus(str(folder))
    for part in SPLITS:
        inside = b"".join(text + b"\0" for name, text in documents if split_of(name) == part)
        assert bytes(everything(corpus.parts[part])) == inside
        assert inside


def test_of_documents_of_any_name_a_tenth_is_held_out() -> None:
    parts = [split_of(f"a/{number}.py") for number in range(10_000)]
    for part in ("test", "validation"):  # binomial: a standard deviation of 22
        assert abs(parts.count(part) - 500) < 110
    known = ["json/decoder.py", "json/scanner.py", os.fsdecode(b"caf\xe9.txt")]
    # CRC-32 of the names modulo 100, by gzip: 75, 7, 11.
    assert [split_of(name) for name in known] == ["train", "validation", "train"]


def test_a_single_file_is_cut(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    corpus = load_corpus(str(tmp_path / "a.txt"))
    size = len(TEXT) + 1
    assert [len(corpus.parts[part]) for part in SPLITS] == [
        size * 90 // 100,
        size * 95 // 100 - size * 90 // 100,
        size - size * 95 // 100,
    ]
    assert bytes(sum((everything(corpus.parts[part]) for part in SPLITS), [])) == (
        TEXT.encode() + b"\0"
    )
    assert load_corpus(str(tmp_path)).checksum == corpus.checksum


def test_the_standard_library_is_a_corpus_without_what_was_installed_beside_it() -> None:
    names = dict(documents_of("stdlib"))
    assert b"class JSONDecoder" in names["json/decoder.py"]
    assert all(name.endswith(".py") and "site-packages" not in name for name in names)


def test_stretches_cross_the_pieces_they_lie_in() -> None:
    whole = np.arange(1000, dtype=np.uint16)
    pieces = np.split(whole, [1, 2, 7, 7, 500])
    starts = np.array([0, 1, 5, 499, 990])
    stretches = Tokens(pieces).stretches(starts, 10)
    assert (stretches == starts[:, None] + np.arange(10)).all()


@pytest.mark.parametrize("shard_tokens", [7000, 10**6])
def test_prepared_shards_hold_the_tokens_of_the_corpus(
    folder: Path, tmp_path: Path, shard_tokens: int
) -> None:
    written = prepare(str(folder), tmp_path / "shards", shard_tokens=shard_tokens)
    loaded, original = load_corpus(str(tmp_path / "shards")), load_corpus(str(folder))
    assert loaded.checksum == original.checksum == written.checksum
    for part in SPLITS:
        assert everything(loaded.parts[part]) == everything(original.parts[part])
        assert written.tokens[part] == len(original.parts[part])
    number = len(list((tmp_path / "shards").glob("train-*.bin")))
    assert number == -(-written.tokens["train"] // shard_tokens)
    task, same = (Text(corpus=str(path), length=32) for path in (folder, tmp_path / "shards"))
    for step in (0, 3, 10_000):
        assert task.sample(4, seed=1, step=step).tokens.equal(
            same.sample(4, seed=1, step=step).tokens
        )


def test_shards_in_the_home_folder_are_shards(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written = prepare(str(folder), tmp_path / "shards")
    assert load_corpus("~/shards").checksum == written.checksum


def test_an_epoch_shows_stretches_side_by_side_once_each(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(np.random.default_rng(0).bytes(3000))
    task = Text(corpus=str(tmp_path / "noise"), length=50)
    row = bytes(everything(task.corpus.parts["train"]))
    count = (len(row) - 1) // 50 - 1
    firsts = []
    for epoch in range(2):
        steps = range(epoch * count, (epoch + 1) * count)
        tokens = [task.sample(1, seed=0, step=step).tokens[0].tolist() for step in steps]
        starts = [row.find(bytes(stretch)) for stretch in tokens]
        assert starts != sorted(starts)
        firsts.append(min(starts))
        assert sorted(starts) == list(range(firsts[-1], firsts[-1] + 50 * count, 50))
    assert firsts[0] != firsts[1]


def test_a_corpus_of_one_stretch_is_enough(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 199)  # and the end: 180, 10 and 10 bytes
    task = Text(corpus=str(tmp_path / "a.txt"), length=9)
    assert task.sample(3, seed=0, split="test").tokens.shape == (3, 9)
    wanted = r"its validation part has 10 tokens: must have more than length=10"
    with pytest.raises(ConfigError, match=wanted):
        Text(corpus=str(tmp_path / "a.txt"), length=10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda at: at / "missing", "there is no such file or folder; must be one, or 'stdlib'"),
        (lambda at: at, "is empty; must have a file with text in it"),
        (lambda at: (at / "empty.txt").write_text("") or at, "is empty; must have a file"),
        (lambda at: os.symlink("nowhere", at / "link") or at, "link: there is no such file"),
        (lambda at: os.mkfifo(at / "pipe") or at, "pipe: is not a file"),
    ],
)
def test_a_corpus_that_cannot_be_read_is_refused(tmp_path: Path, make, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load_corpus(str(make(tmp_path)))
    assert str(error.value).startswith("corpus=")
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_listed_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scandir(path: str, scan=os.scandir):
        if str(path).endswith("part-1"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ConfigError, match="corpus=.*part-1: cannot be read: Permission denied"):
        load_corpus(str(folder))


def test_a_name_that_is_no_utf_8_is_a_name(folder: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    (folder / name).write_text(TEXT)
    assert split_of(name) in SPLITS
    assert len(documents_of(str(folder))) == 201
    load_corpus(str(folder))


def test_no_name_is_not_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match="corpus='': must be a file, a folder, 'stdlib' or 'hf:"):
        TextConfig(corpus="")
    with pytest.raises(ConfigError, match="corpus='': there is no such file or folder"):
        documents_of("")


def test_another_corpus_than_the_one_with_the_checksum_is_refused(folder: Path) -> None:
    checksum = load_corpus(str(folder)).checksum
    Text(corpus=str(folder), length=32, checksum=checksum)
    with pytest.raises(ConfigError, match=f"checksum='12345678': must be '{checksum}', that of"):
        Text(corpus=str(folder), length=32, checksum="12345678")


def test_shards_that_are_damaged_are_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    out.mkdir()  # an empty folder is as good as a new one
    prepare(str(folder), out)
    with pytest.raises(RunError, match="must be a new or an empty folder"):
        prepare(str(folder), out)
    index = json.loads((out / "index.json").read_text())
    whole = (out / "train-00000.bin").read_bytes()
    for size in (0, 1, len(whole) - 2, len(whole) - 1):  # as a copy that was stopped
        (out / "train-00000.bin").write_bytes(whole[:size])
        wanted = f"its train part has {size:,} bytes: must be {len(whole):,}; prepare it again"
        with pytest.raises(ConfigError, match=f"corpus='{out}': {wanted}"):
            load_corpus(str(out))
    (out / "train-00000.bin").write_bytes(whole)
    (out / "index.json").write_text(json.dumps(index | {"tokens": {"train": 5}}))
    with pytest.raises(RunError, match="tokens.validation is missing"):
        load_corpus(str(out))
    earlier = {name: value for name, value in index.items() if name != "tokens"}
    (out / "index.json").write_text(json.dumps(earlier))
    assert load_corpus(str(out)).checksum == index["checksum"]
    load_corpus.cache_clear()
    (out / "test-00000.bin").unlink()
    with pytest.raises(ConfigError, match="test-00000.bin is missing; prepare it again"):
        load_corpus(str(out))
    (out / "index.json").write_text(json.dumps(index | {"vocabulary": "many"}))
    with pytest.raises(RunError, match="vocabulary='many': must be a whole number"):
        load_corpus(str(out))
    inside = index["shards"] | {"test": ["../elsewhere.bin"]}
    (out / "index.json").write_text(json.dumps(index | {"shards": inside}))
    with pytest.raises(RunError, match="leads out of the folder"):
        load_corpus(str(out))


def test_tokens_of_shards_that_were_changed_are_refused(folder: Path, tmp_path: Path) -> None:
    checksum = prepare(str(folder), tmp_path / "shards").checksum
    text = {"corpus": str(tmp_path / "shards"), "length": 32}
    Text(**text, checksum=checksum)
    shard = tmp_path / "shards" / "test-00000.bin"
    for token in (7, 256):
        load_corpus.cache_clear()
        shard.write_bytes(np.array([token], "<u2").tobytes() * (shard.stat().st_size // 2))
        with pytest.raises(
            ConfigError, match=f"tokens have checksum .*: must have '{checksum}'; pre"
        ):
            Text(**text, checksum=checksum)
    task = Text(**text)
    task.sample(1, seed=0)
    message = f"{shard}: is damaged: has the token 256: must be below 256, the vocabulary"
    with pytest.raises(ConfigError, match=message):
        task.sample(1, seed=0, split="test")


def test_a_tokenizer_outside_of_the_shards_is_refused(
    fake_tokenizers: Path, tmp_path: Path
) -> None:
    (tmp_path / "words.json").write_text("50")
    (tmp_path / "a.txt").write_text(TEXT)
    out = tmp_path / "shards"
    prepare(str(tmp_path / "a.txt"), out, tokenizer=str(tmp_path / "words.json"))
    index = json.loads((out / "index.json").read_text())
    (out / "index.json").write_text(json.dumps(index | {"tokenizer": "../words.json"}))
    with pytest.raises(RunError, match="words.json: leads out of the folder"):
        load_corpus(str(out))


def test_shards_are_no_text(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    prepare(str(folder), out)
    message = "has shards of tokens: must be text, or all shards with their index.json; prepare it"
    with pytest.raises(ConfigError, match=message):
        prepare(str(out), tmp_path / "again")
    (out / "index.json").unlink()  # as where writing was stopped
    with pytest.raises(ConfigError, match=message):
        load_corpus(str(out))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shard_tokens": 0}, "shard_tokens=0: must be 1 or greater"),
        ({"shard_tokens": 1.5}, "shard_tokens=1.5: must be a whole number"),
        ({"tokenizer": "bpe", "shard_tokens": 0}, "shard_tokens=0: must be 1 or greater"),
        ({"tokenizer": "missing.json"}, "tokenizer='missing.json': there is no such file"),
        ({"tokenizer": "few.json"}, "tokenizer='few.json': does not know all of the text: no 'to'"),
    ],
)
def test_nothing_is_written_where_an_argument_is_wrong(
    settings: dict, message: str, fake_tokenizers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(self, text: str, *, add_special_tokens: bool) -> None:
        raise ValueError("no 'to'")

    monkeypatch.setattr(FakeTokenizer, "encode", encode)
    monkeypatch.chdir(fake_tokenizers)
    Path("few.json").write_text("50")
    Path("a.txt").write_text(TEXT)
    with pytest.raises(ConfigError, match=message):
        prepare("a.txt", "shards", **settings)
    assert not Path("shards").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer": "missing.json"}, "tokenizer='missing.json': there is no such file"),
        ({"tokenizer": "bpe", "vocabulary": 5}, "vocabulary=5: must be between 257 and 65536"),
        ({"tokenizer": "bpe"}, "tokenizer='bpe': needs the package tokenizers"),
    ],
)
def test_a_wrong_tokenizer_is_refused_before_the_corpus_is_read(
    settings: dict, message: str, fake_tokenizers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "package" in message:
        monkeypatch.setitem(sys.modules, "tokenizers", None)
    module = sys.modules["mesaopt.corpus.prepare"]  # the package has a function of this name
    monkeypatch.setattr(module, "documents_of", lambda _: pytest.fail("reads the corpus"))
    with pytest.raises(ConfigError, match=message):
        prepare("stdlib", fake_tokenizers / "shards", **settings)


def test_shards_are_written_to_a_path_in_the_home_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(folder)
    assert prepare(str(folder), "~/shards").folder == tmp_path / "shards"
    assert (tmp_path / "shards" / "index.json").exists()
    assert not Path("~").exists()


class FakeTokenizer:
    """Words as tokens: what the package `tokenizers` has, as far as it is used."""

    def __init__(self, size: int = 50) -> None:
        self.words = {"<|endoftext|>": 0}
        self.size = size

    def get_vocab_size(self) -> int:
        return self.size

    def token_to_id(self, token: str) -> int | None:
        return self.words.get(token)

    def encode(self, text: str, *, add_special_tokens: bool):
        assert not add_special_tokens
        ids = [self.words.setdefault(word, len(self.words)) for word in text.split()]
        return SimpleNamespace(ids=ids)

    def decode(self, ids: list[int]) -> str:
        names = list(self.words)
        return " ".join(names[i] for i in ids)


@pytest.fixture
def fake_tokenizers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Put the fake in the place of the package; a file holds the number of tokens."""

    def from_file(path: str) -> FakeTokenizer:
        return FakeTokenizer(json.loads(Path(path).read_text()))

    package = SimpleNamespace(Tokenizer=SimpleNamespace(from_file=from_file))
    monkeypatch.setitem(sys.modules, "tokenizers", package)
    return tmp_path


def test_a_tokenizer_makes_tokens_and_ends_documents(fake_tokenizers: Path) -> None:
    file = fake_tokenizers / "words.json"
    file.write_text("50")
    (fake_tokenizers / "a.txt").write_text(TEXT)
    corpus = load_corpus(str(fake_tokenizers / "a.txt"), str(file))
    assert corpus.vocabulary == 50
    assert everything(corpus.parts["train"])[:8] == [1, 2, 3, 4, 1, 5, 6, 7]
    assert everything(corpus.parts["test"])[-1] == 0
    out = fake_tokenizers / "shards"
    written = prepare(str(fake_tokenizers / "a.txt"), out, tokenizer=str(file))
    assert written.checksum == corpus.checksum
    prepared = load_corpus(str(out))
    assert prepared.tokenizer == str(out / "tokenizer.json")
    assert (out / "tokenizer.json").read_text() == "50"
    with pytest.raises(ConfigError, match="must be 'bytes' or .*with which .* was prepared"):
        load_corpus(str(out), str(file))


def test_a_tokenizer_that_does_not_fit_is_refused(fake_tokenizers: Path) -> None:
    file, text = fake_tokenizers / "words.json", fake_tokenizers / "a.txt"
    text.write_text(TEXT)
    with pytest.raises(ConfigError, match="there is no such file; must be one, or 'bytes'"):
        load_tokenizer(str(file))
    file.write_text("nonsense")
    with pytest.raises(ConfigError, match="words.json': holds no tokenizer: "):
        load_tokenizer(str(file))
    file.write_text("70000")
    with pytest.raises(ConfigError, match="has 70,000 tokens: must have at most 65,536"):
        load_tokenizer(str(file))
    file.write_text("300")
    with pytest.raises(ConfigError, match="vocabulary=256: must be 300 or greater, the tokens of"):
        Text(corpus=str(text), tokenizer=str(file), length=8)
    config = TextConfig(corpus=str(text), tokenizer=str(file), vocabulary=512, length=8)
    assert Text(config).sample(2, seed=0).tokens.shape == (2, 8)


def test_without_the_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"needs the package tokenizers: pip install 'mesaopt\[t"):
        load_tokenizer("words.json")
    with pytest.raises(ConfigError, match=r"needs the package datasets: pip install 'mesaopt\[te"):
        documents_of("hf:books")


def test_the_column_text_of_a_data_set_is_a_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": f"{number} {TEXT}"} for number in range(3)]

    def load_dataset(name: str, *, split: str) -> list[dict[str, str]]:
        assert split == "train"
        if name != "books":
            raise FileNotFoundError(f"no data set {name}")
        return rows

    fake = SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert documents_of("hf:books") == [
        (f"books/{i}", row["text"].encode()) for i, row in enumerate(rows)
    ]
    with pytest.raises(ConfigError, match="corpus='hf:songs': cannot be loaded: no data set songs"):
        documents_of("hf:songs")
    rows[1] = {"words": ""}
    with pytest.raises(ConfigError, match="corpus='hf:books': its rows have no 'text'"):
        documents_of("hf:books")


def test_byte_pairs_are_learned_and_give_the_text_back(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    written = prepare(str(folder), tmp_path / "shards", tokenizer="bpe", vocabulary=300)
    assert written.vocabulary == 300
    corpus = load_corpus(str(tmp_path / "shards"))
    tokens = corpus.parts["train"].stretches(np.array([0]), 200)[0]
    original = load_corpus(str(folder)).parts["train"]
    text = bytes(original.stretches(np.array([0]), 200)[0].tolist()).decode()
    assert load_tokenizer(corpus.tokenizer).decode(tokens).startswith(text[:100])
    with pytest.raises(ConfigError, match="vocabulary=100: must be between 257 and 65536"):
        prepare(str(folder), tmp_path / "more", tokenizer="bpe", vocabulary=100)


@pytest.mark.parametrize("names", [["a.txt"], ["test", "test"], ["validation", "train"], SPLITS])
def test_byte_pairs_are_learned_from_what_is_trained_on(
    names: Sequence[str], tmp_path: Path
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    cut = set(names) != set(SPLITS)
    numbers = map(str, range(10**6))
    (tmp_path / "texts").mkdir()
    for part in names:
        name = part if part == "a.txt" else next(n for n in numbers if split_of(n) == part)
        whole = 1000 * ("ab" if part == "train" else "wx")
        (tmp_path / "texts" / name).write_text(900 * "ab" + 100 * "wx" if cut else whole)
    prepare(str(tmp_path / "texts"), tmp_path / "shards", tokenizer="bpe", vocabulary=300)
    known = tokenizers.Tokenizer.from_file(str(tmp_path / "shards" / "tokenizer.json")).get_vocab()
    assert "ab" in known
    assert "wx" not in known


def test_the_command_prepares_and_says_how_to_go_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shards"
    with pytest.raises(SystemExit) as end:
        cli.main(["data", "prepare", str(folder), "--out", str(out)])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    checksum = load_corpus(str(out)).checksum
    assert f"checksum    {checksum}" in printed
    assert f"--set task.corpus={out}" in printed.replace("\n", "")
    with pytest.raises(SystemExit) as end:
        cli.main(["data", "prepare", str(tmp_path / "missing"), "--out", str(tmp_path / "b")])
    assert end.value.code == 2
    assert "there is no such file or folder" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
