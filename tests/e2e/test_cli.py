"""The command line without a server, as a user runs it."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from tests import forked
from tests.hub_server import WRITE_TOKEN, stub_hub
from tests.marks import every
from tests.models import save_tiny
from worker.cli import main


def spq(*arguments, check=True, env=None):
    command = [sys.executable, "-m", "worker.cli", *map(str, arguments)]
    if env is None:
        return forked.run(command, check=check)
    # libraries read the environment when they are imported
    return subprocess.run(command, capture_output=True, text=True, check=check, env=env)


@pytest.fixture
def failing(monkeypatch, capfd):
    """A command that must fail, in this process: starting one takes longer than most mistakes."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["spq", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr().err
        assert "Traceback" not in said
        return ended.value.code, said

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("cli") / "tiny")


def test_compress_evaluate_inspect(model, tmp_path):
    out, data = tmp_path / "out", tmp_path / "text.txt"
    data.write_text("The quick brown fox jumps over the lazy dog.\n" * 40)
    done = spq(
        "compress", model, "--recipe", "spq-paper", "--dataset", "builtin", "--out", out, "--json"
    )
    report = json.loads(done.stdout)
    assert report["artifact"] == str(out)
    assert report["compression"]["artifact_bytes"] < report["compression"]["source_bytes"]
    assert "svd" in done.stderr

    measured = spq(
        "evaluate",
        out,
        "--data",
        data,
        "--windows",
        2,
        "--length",
        64,
        "--reference",
        model,
        "--json",
    )
    figures = json.loads(measured.stdout)
    for key in ("perplexity", "tokens", "bytes_on_disk", "decode_tokens_per_second", "kl", "top1"):
        assert figures[key] >= 0
    assert figures["tokens"] == 2 * 63
    assert figures["evaluation"]["settings"]["stride"] == 64

    shown = json.loads(spq("inspect", out, "--json").stdout)
    assert shown["verified"] is True
    assert {one["stage"] for one in shown["modules"]} == {"svd", "prune", "quantize"}
    summary = spq("inspect", out).stdout
    assert "all digests match" in summary
    assert "matrices were quantized" in summary
    assert "layers.0" not in summary
    assert "layers.0" in spq("inspect", out, "--all").stdout


@pytest.mark.extended
def test_compare_sets_folders_side_by_side(model, tmp_path):
    for name in ("svd-only", "small"):
        small = {"extends": name, "calibration": {"samples": 4, "length": 48}}
        small["target"] = {"bytes_ratio": 0.9 if name == "svd-only" else 0.2}
        (tmp_path / f"{name}.json").write_text(json.dumps(small))
        spq(
            "compress", model, "--recipe", tmp_path / f"{name}.json", "--dataset", "builtin",
            "--out", tmp_path / name,
        )  # fmt: skip
    options = ("--dataset", "builtin", "--windows", 2, "--no-throughput")
    done = spq("compare", model, tmp_path / "svd-only", tmp_path / "small", *options, "--json")
    rows = json.loads(done.stdout)["rows"]
    assert [row["name"] for row in rows] == [model.name, "svd-only", "small"]
    assert rows[0]["kl"] is None
    assert rows[1]["kl"] > 0
    assert rows[2]["bytes_on_disk"] < rows[1]["bytes_on_disk"] < rows[0]["bytes_on_disk"]


def test_a_gguf_file_needs_llama_cpp_and_comes_after_a_folder(
    model, tmp_path, failing, monkeypatch
):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    code, said = failing("compare", model, file, "--dataset", "builtin", "--windows", 1)
    assert code == 1
    assert "pip install llama-cpp-python" in said
    code, said = failing("compare", file, model, "--dataset", "builtin")
    assert code == 1
    assert "model.gguf: give a folder" in said


def test_models_of_two_vocabularies_are_not_compared(model, tmp_path, failing):
    other = save_tiny(tmp_path / "other", vocabulary=700)
    code, said = failing(
        "compare", model, other, "--dataset", "builtin", "--windows", 1, "--no-throughput"
    )
    assert code == 1
    assert "other predicts 700 tokens" in said


@pytest.mark.extended
def test_compress_with_figures_prints_the_table(model, tmp_path):
    done = spq(
        "compress",
        model,
        "--dataset",
        "builtin",
        "--out",
        tmp_path / "out",
        "--windows",
        1,
        "--length",
        64,
    )
    assert "| source |" in done.stdout
    assert "| result |" in done.stdout
    assert "perplexity: builtin (the Python language reference" in done.stdout
    assert (tmp_path / "out" / "README.md").is_file()


def test_without_hub_and_data_folder_the_builtin_text_is_used_and_named(model, tmp_path):
    env = {name: value for name, value in os.environ.items() if name != "SPQ_DATA_DIR"}
    env |= {"HF_ENDPOINT": "http://127.0.0.1:9"}
    done = spq(
        "compress", model, "--recipe", "spq-paper", "--out", tmp_path / "out", "--json", env=env
    )
    assert json.loads(done.stdout)["compression"]["calibration"]["dataset"] == "builtin"
    assert "instead of wikitext2" in done.stderr


def test_recipes_as_documents(tmp_path):
    listed = json.loads(spq("recipes", "--json").stdout)
    assert set(listed) >= {"int8", "spq-paper"}
    shown = json.loads(spq("recipes", "int8", "--json").stdout)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(shown | {"stages": [{"type": "quantize", "mode": "tensor"}]}))
    assert json.loads(path.read_text())["stages"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compress", "MODEL", "--recipe", "nope", "--out", "OUT"], "unknown recipe 'nope'"),
        (
            ["compress", "MODEL", "--recipe", "nope.yaml", "--out", "OUT"],
            "nope.yaml does not exist",
        ),
        (
            [
                "compress",
                "MODEL",
                "--recipe",
                "spq-paper",
                "--out",
                "OUT",
                "--data-dir",
                "OUT.parent",
            ],
            "wikitext2",
        ),
        (["inspect", "MODEL"], "not a compressed artifact"),
        (["estimate", "./nothing"], "there is no folder or file './nothing'"),
        (["compress", "./nothing", "--out", "OUT"], "there is no folder or file './nothing'"),
        (["estimate", "MODEL", "--recipe", "best"], "unknown recipe 'best'"),
        (["evaluate", "MODEL", "--dataset", "builtin", "--length", "99999999"], "length"),
        (["evaluate", "MODEL", "--dataset", "builtin", "--length", "512"], "256 positions"),
        (["jobs", "--url", "http://127.0.0.1:9", "list"], "does not answer"),
    ],
)
def test_errors_are_one_line_that_names_the_thing(
    model, tmp_path, failing, monkeypatch, arguments, words
):
    places = {"MODEL": str(model), "OUT": str(tmp_path / "out"), "OUT.parent": str(tmp_path)}
    filled = [places.get(one, one) for one in arguments]
    monkeypatch.setenv("SPQ_API_KEY", "spq_x")
    code, said = failing(*filled)
    assert code != 0
    assert words in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", None, "has no config.json"),
        ("config.json", b"[1]", "not a JSON object"),
        ("config.json", b"{", "not valid JSON"),
        ("tokenizer.json", None, "no usable tokenizer"),
    ],
)
def test_broken_model_folders_are_named(model, tmp_path, failing, file, content, words):
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / file).unlink()
    if content is not None:
        (broken / file).write_bytes(content)
    out = tmp_path / "out"
    code, said = failing(
        "compress", broken, "--recipe", "spq-paper", "--dataset", "builtin", "--out", out
    )
    assert code == 1
    assert words in said
    assert not out.exists()


def test_mistakes_around_files_are_one_line(model, tmp_path, failing):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "file").write_text("x")
    gate = {
        "apiVersion": "recipe/v1",
        "stages": [{"type": "quantize"}],
        "gates": {"max_perplexity_ratio": 1.1},
    }
    (tmp_path / "gate.json").write_text(json.dumps(gate))
    calls = (
        (
            ["compress", model, "--recipe", tmp_path / "binary.yaml", "--out", tmp_path / "o"],
            "not YAML or JSON",
        ),
        (
            ["compress", model, "--recipe", tmp_path / "gate.json", "--out", tmp_path / "o"],
            "give --windows",
        ),
        (["compress", model, "--out", tmp_path / "file"], "file"),
        (
            [
                "compress",
                model,
                "--out",
                tmp_path / "o",
                "--dataset",
                "builtin",
                "--windows",
                "1",
                "--length",
                "512",
            ],
            "256 positions",
        ),
        (["evaluate", model, "--data", tmp_path / "binary.yaml"], "not a UTF-8 text file"),
        (
            ["evaluate", model, "--dataset", "builtin", "--length", "64", "--device", "foo"],
            "unknown device",
        ),
        (["evaluate", tmp_path, "--dataset", "builtin", "--length", "64"], "config.json"),
        (["migrate", "--database-url", "garbage"], "error"),
    )
    for arguments, words in calls:
        code, said = failing(*arguments)
        assert code == 1, arguments
        assert words in said, said
        assert not (tmp_path / "o").exists()


def hub_environment(hub, tmp_path, **more):
    kept = {name: value for name, value in os.environ.items() if "TOKEN" not in name}
    return kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")} | more


def test_a_gated_model_is_named_with_the_token_of_whoever_types(model, tmp_path):
    with stub_hub() as hub:
        hub.add_model("org/gated", model, gated=True)
        arguments = ("compress", "org/gated", "--recipe", "int8", "--out", tmp_path / "out")
        refused = spq(*arguments, env=hub_environment(hub, tmp_path), check=False)
        assert refused.returncode == 1
        assert "gated_model" in refused.stderr
        assert "no token was found: set HF_TOKEN or SPQ_HUB_TOKEN" in refused.stderr
        env = hub_environment(hub, tmp_path, HF_TOKEN=WRITE_TOKEN)
        done = spq(*arguments, check=False, env=env)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out" / "config.json").is_file()
        assert WRITE_TOKEN not in done.stdout + done.stderr
        env = hub_environment(hub, tmp_path, SPQ_HUB_TOKEN=WRITE_TOKEN)
        estimated = spq("estimate", "org/gated", "--recipe", "int8", check=False, env=env)
        assert estimated.returncode == 0, estimated.stderr


def test_a_full_disk_is_one_line_and_can_be_resumed(model, tmp_path):
    """A limit on the size of files stands for it: writes fail in the middle of a run."""
    out = tmp_path / "out"
    program = (
        "import errno, sys, spq_core.artifact.writer as write\n"
        "real, count = write.save_file, [0]\n"
        "def save_file(*args, **named):\n"
        "    count[0] += 1\n"
        "    if count[0] == 7: raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "    return real(*args, **named)\n"
        "write.save_file = save_file\n"
        "from worker.cli import main\n"
        "main()"
    )
    arguments = [
        "compress",
        str(model),
        "--recipe",
        "gptq-8",
        "--dataset",
        "builtin",
        "--out",
        str(out),
    ]
    broken = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert broken.returncode == 1
    lines = [line for line in broken.stderr.splitlines() if "rror" in line]
    assert lines == [line for line in lines if "insufficient_disk" in line]
    assert "--resume goes on from there" in broken.stderr
    assert "Traceback" not in broken.stderr
    done = spq(*arguments, "--resume", env=dict(os.environ), check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("moment", every(2, ["after a layer", "before a layer"]))
def test_an_ended_run_says_how_it_goes_on_and_leaves_nothing_else(model, tmp_path, moment):
    """SIGTERM, as an operator or a batch system sends it, is as good as Ctrl-C."""
    out, scratch = tmp_path / "out", tmp_path / "out.scratch"
    scratch.mkdir()
    (scratch / "left by a run that was killed").touch()
    command = [
        sys.executable, "-m", "worker.cli", "compress", str(model), "--recipe", "spq-paper", "--dataset",
        "builtin", "--out", str(out),
    ]  # fmt: skip
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    reached = tmp_path / ("out.scratch" if moment == "before a layer" else "out.state/state.json")
    deadline = time.monotonic() + 300
    while not reached.exists() or (scratch / "left by a run that was killed").exists():
        assert running.poll() is None and time.monotonic() < deadline  # noqa: PT018
        time.sleep(0.01)
    running.terminate()
    said = running.communicate(timeout=300)[1]
    assert running.returncode == 1
    assert "Traceback" not in said
    if moment == "before a layer":
        assert said.strip().splitlines()[-1] == "Error: interrupted; nothing was finished yet"
        assert not list(tmp_path.iterdir())
    else:
        assert "the same command with --resume goes on from the last finished layer" in said
        kept = {path.name.removeprefix("out.") for path in tmp_path.iterdir()}
        assert kept <= {"state", "partial", "spool", "probe.safetensors"}
        spq(
            "compress",
            model,
            "--recipe",
            "spq-paper",
            "--dataset",
            "builtin",
            "--out",
            out,
            "--resume",
        )
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
