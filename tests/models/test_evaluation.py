"""How answers are counted, and the file that keeps them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models import ModelError
from models.evaluation import Outcome, ranks, scores
from models.evaluation_state import add, read_state
from models.image_folder import evaluation_batches

BATCHES = evaluation_batches(5, 2)  # 2, 2 and 1 images
SETTINGS = {"weights": "abc", "batch_size": 2}
DONE = (Outcome(0, 2, 1, 2, 0.1 + 0.2, ()), Outcome(2, 0, 0, 0, 0.0, (4,)))


def test_ranks_are_those_of_a_sorted_list() -> None:
    values = torch.randn(50, 7, dtype=torch.float64)
    targets = torch.randint(7, (50,))
    order = values.argsort(1, descending=True).tolist()
    expected = [row.index(target) for row, target in zip(order, targets.tolist(), strict=True)]
    assert ranks(values, targets).tolist() == expected


def test_of_equal_scores_the_first_class_wins() -> None:
    """Always the same one, and nobody is right twice: a network that answers alike is right once in so many times."""
    assert ranks(torch.zeros(4, 4), torch.arange(4)).tolist() == [0, 1, 2, 3]


def test_a_single_output_has_two_sides() -> None:
    values = scores(torch.tensor([[2.0], [-1.0]]))
    assert values.argmax(1).tolist() == [1, 0]
    torch.testing.assert_close(values.softmax(1)[:, 1], torch.tensor([2.0, -1.0]).double().sigmoid())


def written(path: Path) -> list[str]:
    assert read_state(path, SETTINGS, BATCHES) == []
    for outcome in DONE:
        add(path, outcome)
    return path.read_text().splitlines()


def test_a_state_is_read_back_to_the_bit(tmp_path: Path) -> None:
    written(tmp_path / "state")
    assert read_state(tmp_path / "state", SETTINGS, BATCHES) == list(DONE)


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_was_not_finished_is_left_out(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "state"
    written(path)
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    assert read_state(path, SETTINGS, BATCHES) == [DONE[0]]
    add(path, DONE[1])
    assert path.read_bytes() == content and read_state(path, SETTINGS, BATCHES) == list(DONE)


def test_a_first_line_that_was_not_finished_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "state"
    header = written(path)[0]
    path.write_text(header[:10])
    assert read_state(path, SETTINGS, BATCHES) == []
    assert path.read_text() == header + "\n"


def test_another_evaluation_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "state"
    written(path)
    with pytest.raises(ModelError, match=r"another evaluation's.*\n  batch_size: expected 2, found 3"):
        read_state(path, {**SETTINGS, "batch_size": 3}, BATCHES)


@pytest.mark.parametrize("content", ["hello", '{"a": 1}', '{"a": 1}\n', "\n", "[]\n", '{"evaluation": 2}\n'])
def test_a_file_that_is_something_else_stays_as_it_is(tmp_path: Path, content: str) -> None:
    path = tmp_path / "state"
    path.write_text(content)
    with pytest.raises(ModelError, match="not the state of an evaluation; name another file"):
        read_state(path, SETTINGS, BATCHES)
    assert path.read_text() == content


def edited(**changes: Any) -> Callable[[str], str]:
    return lambda line: json.dumps(json.loads(line) | changes)


@pytest.mark.parametrize(
    "edit",
    [
        lambda line: line[:-3],
        lambda line: "[]",
        lambda line: "{}",
        edited(batch=3),
        edited(batch=-1),
        edited(images=1),
        edited(images=2.0),
        edited(top1=2, top5=1),
        edited(top5=3),
        edited(top1=-1),
        edited(top1=True),
        edited(loss=float("nan")),
        edited(loss=-1.0),
        edited(loss=None),
        edited(unreadable=[0]),
        edited(unreadable=[3], images=1),
        edited(unreadable=[0, 0], images=0, top1=0, top5=0),
        edited(unreadable=7),
    ],
)
def test_lines_that_cannot_be(tmp_path: Path, edit: Callable[[str], str]) -> None:
    path = tmp_path / "state"
    lines = written(path)
    path.write_text("\n".join([lines[0], edit(lines[1]), lines[2]]) + "\n")
    with pytest.raises(ModelError, match=r"state: line 2: .*the file is damaged"):
        read_state(path, SETTINGS, BATCHES)


def test_two_outcomes_of_one_batch_must_agree(tmp_path: Path) -> None:
    path = tmp_path / "state"
    written(path)
    add(path, DONE[0])
    assert len(read_state(path, SETTINGS, BATCHES)) == 2
    add(path, replace(DONE[0], top1=0))
    with pytest.raises(ModelError, match="another outcome of batch 0"):
        read_state(path, SETTINGS, BATCHES)


def test_a_machine_that_does_not_see_the_file_keeps_nothing(tmp_path: Path) -> None:
    add(tmp_path / "state", DONE[0])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ModelError, match="cannot be written"):
        add(tmp_path, DONE[0])
