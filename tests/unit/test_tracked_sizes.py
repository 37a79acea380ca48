"""No tracked file is larger than what a reader of the repository should have to fetch."""

from loaded_script import load


def test_a_large_file_is_named_and_a_small_one_is_not(tmp_path, capsys):
    script = load("tracked_sizes")
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(bytes(script.LIMIT))
    large.write_bytes(bytes(script.LIMIT + 1))
    assert script.main([str(small)]) == 0
    assert script.main([str(small), str(large), str(tmp_path / "removed")]) == 1
    assert capsys.readouterr().out == f"{large}: 500,001 bytes; a tracked file has at most 500,000\n"
