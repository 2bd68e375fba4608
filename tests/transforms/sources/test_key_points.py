"""COCO's key points of people."""

from pathlib import Path

from schemas.example import Example
from tests.coco import instances, only, write
from transforms.listing import list_source


def test_key_points_are_read_and_malformed_ones_left_out(tmp_path: Path) -> None:
    content = instances()
    crowd, dog = content["annotations"]
    points = [[float(i), float(i), i % 3] for i in range(17)]
    crowd["keypoints"], dog["keypoints"] = [value for point in points for value in point], [1, 2]
    folder = write(tmp_path, content, "person_keypoints_x.json")
    record = only(folder)
    assert isinstance(record, Example), record
    assert list_source(str(folder)).kind == "coco-keypoints"
    assert list_source(str(folder)).has_people
    (person,) = record.people or ()
    assert person.points[:3] == ((0, 0, 0), (1, 1, 0.5), (2, 2, 1))
    assert record.left_out == 1
    assert [segment.label for segment in record.segments] == ["dog", "person"]


def test_key_points_that_nobody_labelled_are_no_person(tmp_path: Path) -> None:
    content = instances()
    content["annotations"][0]["keypoints"] = [0] * 51
    record = only(write(tmp_path, content, "person_keypoints_x.json"))
    assert isinstance(record, Example)
    assert record.people == ()


def test_instances_go_before_the_key_points_beside_them(tmp_path: Path) -> None:
    write(tmp_path, instances(), "instances_x.json")
    folder = write(tmp_path, instances(), "person_keypoints_x.json")
    assert list_source(str(folder)).kind == "coco-instances"
    assert list_source(str(folder), "coco-keypoints").kind == "coco-keypoints"
