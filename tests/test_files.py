"""Files are written whole or not at all."""

import numpy as np
import pandas as pd
import pytest
import torch

import aamlib
from aamlib import files


@pytest.mark.parametrize(
    ("write", "content"),
    [
        (files.write_bytes, b"new"),
        (files.write_json, {"new": 1}),
        (files.write_csv, pd.DataFrame({"new": [1]})),
        (files.write_torch, {"new": torch.ones(3)}),
        (files.save_arrays, {"new": np.ones(3)}),
    ],
)
def test_a_file_is_replaced_only_when_all_of_the_new_one_is_written(tmp_path, monkeypatch, write, content):
    def fails(temporary, path):
        assert temporary.stat().st_size > 0
        assert path.read_bytes() == b"old"
        raise OSError(28, "No space left on device")

    (tmp_path / "file").write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(files, "_replace", fails)
        with pytest.raises(aamlib.RunFolderError, match="No space left on device; what was there before is untouched"):
            write(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == b"old"
    write(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() != b"old"
    assert len(list(tmp_path.iterdir())) == 1
