"""A path is taken as it is typed: any character but a slash may stand in a folder's name."""

import json
import os
import shlex
from pathlib import Path

import pytest
from by_night import mostly_by_night

from adalora_bench.cli.parser import main
from adalora_bench.engine.units import Unit, rerun_command
from adalora_bench.errors import UserError
from adalora_bench.settings.compose import accelerators, compose_cells, in_hydra
from adalora_bench.settings.conf_files import CONF_VARIABLE
from adalora_bench.settings.config import PATHS

pytestmark = pytest.mark.fault("paths")

TOY = ["method=lora", "task=toy", "scale=smoke", "seeds=0"]
NAMES = [f"a{sign}b" for sign in "ü=()#&'[]{}~;!$ \"\\,:@%+*?<>|^`日"] + [
    "it's",
    "'",
    "a\\",
    "a\\'b",
    " a",
    "a ",
]
NAMES += ["null", "true", "1", "1e3", "a.b=c", "*", "x,y"]


PLAIN = [name for name in NAMES if "," not in name]  # a comma stands between the values of a sweep


@pytest.mark.parametrize(
    "name", mostly_by_night(PLAIN, ["aüb", "a=b", "a(b", "it's", "a\\'b", "a b", "null"])
)
def test_any_name_of_a_folder_is_taken_plainly(name, tmp_path):
    """In every setting that is a path, in a sweep, and in the command that is printed to run a unit again."""
    settings = [name for name in PATHS if name != "method.pattern_from"]
    given = [f"{setting}={tmp_path}/{name}" for setting in settings]
    swept = f"task.source.local={tmp_path}/{name},{tmp_path}/other"
    cell, other = compose_cells(
        [*TOY, *(text for text in given if not text.startswith("task.")), swept], multirun=True
    )
    for setting in settings:
        node = cell.config
        for part in setting.split("."):
            node = node[part]
        assert node == f"{tmp_path}/{name}"
    assert other.config["task"]["source"]["local"] == f"{tmp_path}/other"
    command = shlex.split(rerun_command(Unit(cell, 0)))
    (again,) = compose_cells(command[2:])
    assert again.config["results_dir"] == f"{tmp_path}/{name}"


@pytest.mark.parametrize("text", [*NAMES, "", "a'b\\", "''", "\\'", "\\\\"])
def test_a_quoted_text_is_read_back(text):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    quoted = in_hydra(f"x{text}")
    value = OverridesParser.create().parse_override(f"results_dir={quoted}").value()
    assert str(value) == f"x{text}"


@pytest.mark.parametrize("value", ["a=b", "it's", "(", "[1", "a b]", "ü{"])
def test_another_value_that_cannot_be_read_is_told_how_to_be_quoted(value, capsys):
    assert main(["plan", *TOY, f"task.description={value}"]) == 2
    said = capsys.readouterr().err
    words = shlex.split(said.split("quote it for the shell and for bench: ")[1].rstrip(".\n"))
    (cell,) = compose_cells([*TOY, *words])
    assert cell.config["task"]["description"] == value


def test_a_tilde_is_the_home_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    given = [f"{name}=~/kept" for name in ("results_dir", "data_dir", "task.source.local")]
    (cell,) = compose_cells([*TOY, *given])
    assert cell.config["results_dir"] == cell.config["data_dir"] == f"{tmp_path}/kept"
    assert cell.config["task"]["source"]["local"] == f"{tmp_path}/kept"
    with pytest.raises(UserError, match="no such home"):
        compose_cells([*TOY, "results_dir=~nobody-of-this-name"])
    (tmp_path / "kept" / "runs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for command in ("tables", "claims"):
        assert main([command, "results_dir=~/kept"]) == 0
    assert not Path("~").exists()


@pytest.mark.parametrize(
    "name",
    mostly_by_night(["it's", "ü (1)", "a=b", "a,b", "[x]", "%20", "a b", "{}", "$HOME"], ["it's", "a,b"]),
)
def test_a_folder_of_settings_may_have_any_name(name, tmp_path, monkeypatch, capsys):
    folder = tmp_path / name / "method"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# mine\ndefaults: [lora, _self_]\nalpha: 3\n")
    monkeypatch.delenv(CONF_VARIABLE, raising=False)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    given = ["method=mine", "task=toy", "scale=smoke", "seeds=0"]
    assert main(["plan", "--config-dir", str(folder.parent), *given]) == 0, capsys.readouterr().err
    (cell,) = compose_cells(given)
    assert cell.config["method"]["alpha"] == 3
    words = shlex.split(rerun_command(Unit(cell, 0)))
    assert words[2:4] == ["--config-dir", str(folder.parent)]


@pytest.mark.parametrize("command", ["tables", "claims", "figures", "report", "pack", "unpack"])
@pytest.mark.parametrize("given", ["resutls", "results/runs/x", "there"])
def test_a_reading_command_makes_no_folder_of_a_typo(command, given, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("results/runs").mkdir(parents=True)
    Path("there").mkdir()
    assert main([command, f"results_dir={given}"]) == 2
    said = capsys.readouterr().err
    assert ("did you mean 'results'?" if given == "resutls" else "no runs/") in said
    assert sorted(path.name for path in Path().rglob("*")) == ["results", "runs", "there"]


@pytest.mark.parametrize(
    ("visible", "there", "seen"),
    [
        (None, 2, ["0", "1"]),
        (None, 0, []),
        ("", 2, []),
        ("-1", 2, []),
        ("NoDevFiles", 0, []),
        ("NoDevFiles", 2, []),
        ("none", 2, []),
        ("void", 2, []),
        ("0", 0, []),
        ("0,1", 1, ["0"]),
        ("1,0", 2, ["1", "0"]),
        ("0,-1,1", 2, ["0"]),
        ("0,0", 2, ["0"]),
        ("5", 2, []),
        ("GPU-8932f937", 1, ["GPU-8932f937"]),
        ("MIG-8932f937", 1, ["MIG-8932f937"]),
        ("GPU-8932f937", 0, []),
        (" 1 , 0 ", 2, ["1", "0"]),
    ],
)
def test_an_accelerator_counts_only_where_it_is(visible, there, seen, monkeypatch):
    monkeypatch.setattr("adalora_bench.settings.compose.devices", lambda: there)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert accelerators() == seen


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("train.early_stop.patience=3", {"patience": 3}),
        ("train.early_stop={patience: 3, metric: loss}", {"patience": 3, "metric": "loss"}),
        ("task.label_smoothing=0.1", 0.1),
        ("task.answer_by=likelihood", "likelihood"),
        ("task.source.subset=x", "x"),
    ],
)
def test_a_setting_with_a_default_in_its_class_can_be_given_though_no_file_has_it(given, value):
    (cell,) = compose_cells([*TOY, given])
    node = cell.config
    for part in given.partition("=")[0].replace("early_stop.patience", "early_stop").split("."):
        node = node[part]
    assert node == value
    json.dumps(cell.config)


def test_such_a_setting_at_its_default_changes_no_cell():
    assert compose_cells([*TOY, "task.label_smoothing=0.0"]) == compose_cells(TOY)


@pytest.mark.parametrize("name", ["train.warmup", "train.eval_every", "method.interval"])
def test_a_length_that_is_no_length_is_told_the_three_forms(name, capsys):
    given = ["method=adalora", *TOY[1:], f"{name}=0.06"]
    assert main(["plan", *given]) == 2
    assert "must be steps (100), a share (6%) or epochs (1ep)" in capsys.readouterr().err
