import json

import pytest

import live
import zarrpipe as zp

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:validation has . sample"),
]


def test_a_store_grows_to_its_end_while_one_rank_trains(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(live, "START", 100)
    live.main(out=tmp_path, samples=230, stride=1, devices=1)
    said = capfd.readouterr().out
    epochs = [json.loads(line) for line in (tmp_path / "epochs.jsonl").read_text().splitlines()]
    counts = [epoch["samples"] for epoch in epochs]
    assert counts == sorted(counts)
    assert (counts[0] >= 100, counts[-1], counts.count(230)) == (True, 230, 1)
    assert "to 230; each began with all that were committed before" in said
    commits = (tmp_path / "committed.jsonl").read_text().splitlines()
    assert [json.loads(line)["committed"] for line in commits] == [0, 100, 200, 230]
    assert (tmp_path / "growth.png").stat().st_size > 10_000
    dataset = zp.ZarrDataset(tmp_path / "ethanol.zarr")
    assert len(set(dataset.ids.tolist())) == 230
