"""Several machines on one run: who does what, what is told, what ends it; and real processes, started by mlx.launch."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from stable_diffusion import __main__ as program
from stable_diffusion import ranks
from stable_diffusion.commands import agreement
from stable_diffusion.errors import InputError
from stable_diffusion.ranks import Group, RankError, Wire
from stable_diffusion.record import picture_files
from stable_diffusion.record.used import Used
from stable_diffusion.request import Request

ROOT = Path(program.__file__).parents[1]
SMALL = ("--steps", "3", "--width", "64", "--height", "64")


class Table:
    """Connects ranks that are threads of this process."""

    def __init__(self, size):
        self.size, self.barrier, self.bodies = size, threading.Barrier(size), [b""] * size

    def connect(self, rank):
        return Wire(rank, self.size, partial(self.exchange, rank))

    def exchange(self, rank, body):
        self.bodies[rank] = body
        self.barrier.wait()
        found = list(self.bodies)
        self.barrier.wait()
        return found


@pytest.fixture
def together(monkeypatch):
    """Runs a function of a group once for each rank, and returns what each returned or raised."""
    monkeypatch.setattr(ranks, "BEAT", 0.01)
    monkeypatch.setattr(ranks, "LEAVING", 1.0)
    own = threading.local()
    monkeypatch.setattr(ranks, "group", lambda: own.group)
    tables = []

    def run(size, function):
        table = Table(size)
        tables.append(table)

        def one(rank):
            group = own.group = Group(partial(table.connect, rank))
            try:
                result = function(group)
            except Exception as error:
                group.leave(str(error))
                return error
            group.leave()
            return result

        with ThreadPoolExecutor(size) as pool:
            return list(pool.map(one, range(size)))

    yield run
    for table in tables:
        table.barrier.abort()


# --- The protocol


@pytest.mark.parametrize(("size", "n"), [(2, 5), (4, 9), (4, 2), (2, 1), (3, 0)])
def test_each_number_is_done_once(together, size, n):
    done = together(size, lambda group: list(group.share(n)))
    assert sorted(number for numbers in done for number in numbers) == list(range(n))
    assert all(numbers[0] == rank for rank, numbers in enumerate(done[:n]) if numbers)


def test_the_quicker_one_does_more(together):
    def work(group):
        numbers = []
        for number in group.share(12):
            time.sleep(0.2 if group.rank else 0.05)
            numbers.append(number)
        return numbers

    quick, slow = together(2, work)
    assert len(quick) > len(slow) + 2


def test_what_is_sent_arrives_whole_before_the_sender_leaves(together):
    large = os.urandom(3 * ranks.SLOT)

    def work(group):
        if group.rank:
            group.advance(group.rank * 10, 9.0)
            for number in range(3):
                group.send(number, {"by": group.rank}, large + bytes([group.rank, number]))
            return None
        return [each for _ in group.wait_for_others() for each in group.arrived()], group.steps

    (found, steps), _, _ = together(3, work)
    assert {(each.said["by"], each.number): each.data for each in found} == {
        (rank, number): large + bytes([rank, number]) for rank in (1, 2) for number in range(3)
    }
    assert steps == 30


def test_the_first_tells_the_others(together):
    def work(group):
        number = group.from_first("number", lambda: 7 if group.rank == 0 else 1 / 0)
        return number, group.from_first("bytes", lambda: b"" if group.rank == 0 else 1 / 0), group.tell_all("x", "é")

    assert together(2, work) == [(7, b"", ["é", "é"])] * 2
    asked_again = together(2, lambda group: [group.tell_all("x", i) for i in range(3)])
    assert asked_again == [[[i, i] for i in range(3)]] * 2


def test_a_rank_that_fails_tells_why_and_ends_the_others(together):
    def work(group):
        for _ in group.share(100):
            if group.rank == 1:
                raise ValueError("the disk is full")
            time.sleep(0.02)
            group.advance(1, 9.0)

    first, second, third = together(3, work)
    host = socket.gethostname().partition(".")[0]
    assert str(second) == "the disk is full"
    for other in (first, third):
        assert isinstance(other, RankError)
        assert str(other) == f"rank 1 ({host}) failed: the disk is full"


def test_a_rank_that_is_gone_is_given_up(monkeypatch):
    monkeypatch.setattr(ranks, "LOST", 0.3)
    gone = threading.Event()
    beats = []

    def exchange(body):
        beats.append(body)
        if len(beats) > 3:
            gone.wait()  # as a collective does whose other end is dead
        return [body, body]

    group = Group(lambda: Wire(0, 2, exchange))
    with pytest.raises(RankError, match=r"have not answered for 0\.3 s"):
        group.tell_all("never", None) and group._wait(lambda: False)
    gone.set()


def test_what_mlx_cannot_connect_is_said():
    def connect():
        raise RuntimeError("[ring] Couldn't connect\n(error: 111)")

    with pytest.raises(RankError, match=r"could not be connected: \[ring\] Couldn't connect \(error: 111\)"):
        Group(connect)


# --- What must be the same


def test_what_is_drawn_is_drawn_once(together):
    asked = Request("a {red|blue|green|white} house", n_images=9, variation_strength=0.1)
    drawn = together(3, lambda group: agreement.agreed(asked, Arguments()))
    assert drawn[0].seed is not None and len(drawn[0].texts) == 9
    assert drawn[1] == drawn[2] == drawn[0]


class Arguments:
    """A namespace of arguments."""

    def __init__(self, **values):
        vars(self).update(values)


@pytest.mark.parametrize(
    ("name", "own"),
    [("steps", lambda rank: (Request(steps=20 + rank, seed=1), Arguments(output=str(rank)))),
     ("frames", lambda rank: (Request(seed=1), Arguments(frames=rank)))],
)  # fmt: skip
def test_different_orders_are_refused_and_named(together, name, own):
    for found in together(2, lambda group: agreement.agreed(*own(group.rank))):
        assert isinstance(found, RankError)
        assert f"has {name} = " in str(found)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"model_hash": "beef"}, "weights = beef"), ({"precision": "float16"}, "--float16"),
     ({"lora_hashes": {"ink": "2"}}, "LoRAs"), ({"vae": "a.pt", "vae_hash": "1"}, "VAE")],
)  # fmt: skip
def test_other_files_are_refused_before_painting(together, change, words):
    used = {"model": "m", "precision": "float32", "version": "1", "model_hash": "cafe"}
    for found in together(
        2, lambda group: agreement.agree_on_engine(None, Used(**used | (change if group.rank else {})))
    ):
        assert isinstance(found, RankError)
        assert words in str(found)


def test_another_mlx_is_only_said(together, recwarn):
    assert together(
        2, lambda group: agreement.agree_on_engine(None, Used("m", "float32", f"MLX {group.rank}", model_hash="1"))
    ) == [None, None]
    assert [str(each.message) for each in recwarn if "rounding" in str(each.message)]


def test_a_fingerprint_tells_models_apart(tmp_path):
    made = []
    for content in (b"a" * 9000, b"a" * 8999 + b"b", b"a" * 9001):
        (tmp_path / "unet").mkdir(exist_ok=True)
        (tmp_path / "unet" / "model.safetensors").write_bytes(content)
        (tmp_path / "notes.txt").write_bytes(content[::-1] + os.urandom(4))
        made += [agreement.fingerprint(tmp_path), agreement.fingerprint(tmp_path)]
    assert made[0] == made[1]
    assert len(set(made)) == 3


# --- Being launched


@pytest.fixture
def environment(monkeypatch):
    for name in (*ranks.FILE_VARIABLES, *ranks.COUNT_VARIABLES, "MLX_RANK"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_who_was_launched(environment, tmp_path):
    assert ranks.launched() == 1
    hosts = tmp_path / "hosts"
    hosts.write_text('[["10.0.0.1:1"], ["10.0.0.2:1"], ["10.0.0.3:1"]]')
    environment.setenv("MLX_HOSTFILE", str(hosts))
    assert ranks.launched() == 1  # without a rank it is somebody else's
    environment.setenv("MLX_RANK", "0")
    assert ranks.launched() == 3
    hosts.write_text("\n")  # by `mlx.launch -n 1`
    assert ranks.launched() == 1
    hosts.write_text("{")
    with pytest.raises(InputError, match=re.escape(repr(str(hosts)))):
        ranks.launched()
    environment.delenv("MLX_HOSTFILE")
    environment.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert ranks.launched() == 2


def test_other_commands_say_that_they_share_nothing(environment, capsys):
    environment.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert program.main(["samplers"]) == program.USAGE
    assert "'samplers' does not share its work" in capsys.readouterr().err
    with ranks.joined("train", shares=False):  # which connects its processes itself
        assert ranks.group().size == 1


# --- Processes


def launch(n, *arguments, prelude="", timeout=100):
    """`mlx.launch -n N` of the command line, `prelude` being run first in each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = min(free.getsockname()[1], 65000)
    code = f"""
import os, sys
rank = int(os.environ["MLX_RANK"])
{prelude}
from stable_diffusion.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
    command = [
        str(Path(sys.executable).with_name("mlx.launch")), "-n", str(n), "--starting-port", str(port), "--",
        sys.executable, "-c", code, *map(str, arguments),
    ]  # fmt: skip
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=variables, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:  # its standard input stays open: mlx.launch never rests once that has ended
        try:
            process.wait(timeout)
            return process.stdout.read(), process.stderr.read()
        finally:
            process.kill()


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_two_machines_paint_what_one_does(tmp_path, capsys):
    out, err = launch(2, "txt2img", "a red house", "--n-images", 5, *SMALL, "--output", f"{tmp_path}/two/")
    lines = out.splitlines()
    assert lines[-1] == "complete: 5 pictures of 2 machines", err
    paths = [line.partition("  (seed")[0] for line in lines[:-1]]
    found = [(picture_files.read_parameters(path), path) for path in paths]  # in their order, whoever painted them
    seeds = [record.seed for record, _ in found]
    assert seeds == list(range(seeds[0], seeds[0] + 5))
    assert len(list((tmp_path / "two").iterdir())) == 5
    alone = ["txt2img", "a red house", "--n-images", "5", *SMALL, "--quiet", "--seed", str(seeds[0])]
    assert program.main([*alone, "--output", f"{tmp_path}/one/"]) == program.DONE
    for line, (record, path) in zip(capsys.readouterr().out.splitlines(), found, strict=True):
        assert picture_files.read_parameters(line) == record
        assert (pixels(line) == pixels(path)).all()


def test_four_machines_blend_three_frames(tmp_path):
    film = tmp_path / "film.gif"
    out, err = launch(4, "blend", "a house", "a boat", "--frames", 3, *SMALL, "--seed", 1, "--output", film, "--quiet")
    assert out.splitlines() == [str(film), "complete: 3 pictures of 4 machines"], err
    assert program.main(["blend", "a house", "a boat", "--frames", "3", *SMALL, "--seed", "1", "--output",
                         str(tmp_path / "one.gif"), "--quiet"]) == program.DONE  # fmt: skip
    with Image.open(film) as many, Image.open(tmp_path / "one.gif") as one:
        for mine, other in zip(ImageSequence.Iterator(many), ImageSequence.Iterator(one), strict=True):
            assert (np.asarray(mine.convert("RGB")) == np.asarray(other.convert("RGB"))).all()


def test_a_killed_rank_leaves_whole_pictures_and_no_completion(tmp_path):
    # Rank 1 dies of a kill -9 in its second picture; rank 0 is slow, so that it is ended while it paints.
    prelude = """
import time
from stable_diffusion.commands import running
run, count = running.Painter.run, []
def killed(*arguments):
    count.append(1)
    if len(count) == 2:
        while running.ranks.group()._outgoing:  # the first picture is on its way
            time.sleep(0.1)
        time.sleep(1.0)
        os.kill(os.getpid(), 9)
    return run(*arguments)
def slow(*arguments):
    time.sleep(2.0)
    return run(*arguments)
running.Painter.run = killed if rank else slow
"""
    output = tmp_path / "pictures"
    out, err = launch(2, "txt2img", "a house", "--n-images", 64, *SMALL, "--output", f"{output}/", prelude=prelude)
    files = list(output.iterdir())
    assert 1 <= len(files) < 64, err
    for file in files:
        assert file.suffix == ".png" and pixels(file).shape == (64, 64, 3)
    assert "complete" not in out
    assert {line.partition("  (")[0] for line in out.splitlines()} == {str(file) for file in files}
    assert "rank 1" in err


def test_a_rank_that_cannot_paint_ends_all_before_anybody_does(tmp_path):
    output = tmp_path / "pictures"
    prelude = "if rank: sys.argv += ['--vae', 'nowhere.safetensors']"
    out, err = launch(2, "txt2img", "a house", "--output", f"{output}/", *SMALL, "--seed", 1, prelude=prelude)
    assert out == ""
    assert re.search(r"^error: rank 1 \(.*\) has vae = 'nowhere.safetensors', rank 0 \(.*\) None\.", err, re.MULTILINE)
    assert not output.exists()


def test_a_missing_picture_is_said_once_and_by_whom(tmp_path):
    out, err = launch(2, "img2img", tmp_path / "none.png", "a house", *SMALL, "--output", f"{tmp_path}/x/")
    assert out == ""
    assert re.findall("error: (.*)", err) == [f"No picture file at {str(tmp_path / 'none.png')!r}."]
