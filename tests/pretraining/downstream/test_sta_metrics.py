"""The challenge's scores against values worked out by hand."""

import json

import numpy as np
import pytest

from pretraining.downstream.sta_metrics import (
    CHALLENGE,
    Objects,
    average_precision,
    check_results,
    iou,
    match,
    top5_map,
)

BOX = [10, 10, 29, 29]  # 20 x 20 pixels
AWAY = [60, 60, 79, 79]


def objects(*rows):
    """(box, noun, verb, time to contact[, score]) each."""
    boxes, nouns, verbs, ttcs, *scores = zip(*rows, strict=True) if rows else ([],) * 5
    return Objects(
        np.array(boxes, float).reshape(-1, 4),
        np.array(nouns, int),
        np.array(verbs, int),
        np.array(ttcs, float),
        np.array(scores[0], float) if scores else None,
    )


def test_boxes_count_their_last_pixel():
    # 20 x 20 against the same moved by 10: 200 shared of 600.
    assert iou(np.array([BOX]), np.array([[20, 10, 39, 29]]))[0, 0] == pytest.approx(1 / 3)
    assert iou(np.array([BOX]), np.array([AWAY]))[0, 0] == 0


@pytest.mark.parametrize(
    ("box", "right"),
    [
        ([10, 10, 29, 19], False),  # 200 of 400: not more than a half
        ([10, 10, 29, 20], True),  # 220 of 400
    ],
)
def test_a_box_must_overlap_by_more_than_a_half(box, right):
    scores = top5_map([(objects((box, 1, 1, 1.0, 0.9)), objects((BOX, 1, 1, 1.0)))])
    assert scores["noun"] == (100 if right else 0)


def test_each_criterion_asks_for_what_its_name_says():
    truth = objects((BOX, 3, 2, 1.0), (AWAY, 4, 2, 0.5))
    found = objects(
        (BOX, 3, 7, 1.25, 0.9),  # noun, time; not the verb
        (AWAY, 4, 2, 0.76, 0.8),  # noun, verb; 0.26 s late
    )
    assert top5_map([(found, truth)]) == {
        "noun": 100,
        "noun_verb": 50,
        "noun_ttc": 50,
        "overall": 0,
    }


def test_an_object_is_found_once_and_four_mistakes_are_free():
    truth = objects((BOX, 1, 1, 1.0))
    wrong = [(AWAY, 1, 1, 1.0, 0.9 - 0.01 * i) for i in range(4)]
    late = (BOX, 1, 1, 1.0, 0.5)
    order, right = match(objects(*wrong, late, late), truth)
    assert order.tolist()[:4] == [0, 1, 2, 3]
    assert np.isnan(right[:4, 0]).all()
    assert right[4:, 0].tolist() == [1, 0]  # of two equal boxes the second is a mistake
    assert top5_map([(objects(*wrong, late), truth)])["overall"] == 100
    five = [*wrong, (AWAY, 1, 1, 1.0, 0.6)]
    assert top5_map([(objects(*five, late), truth)])["overall"] == 50  # the fifth counts: 1 of 2


def test_free_mistakes_are_of_the_frame_whatever_their_noun():
    truth = objects((BOX, 1, 1, 1.0), (AWAY, 2, 1, 1.0))
    others = [(AWAY, 9, 1, 1.0, 0.9)] * 8  # takes up all 4 N of them
    found = objects(*others, (BOX, 2, 1, 1.0, 0.8), (BOX, 1, 1, 1.0, 0.7), (AWAY, 2, 1, 1.0, 0.6))
    # Noun 1: 100 %. Noun 2: a mistake that counts, then the right one: 50 %.
    assert top5_map([(found, truth)])["noun"] == 75


def test_precision_is_the_best_that_comes_later():
    right, scores = np.array([1.0, 0, 1, 0, 0, 1]), np.linspace(1, 0.5, 6)
    # Precisions at the hits: 1, 2/3, 3/6; two of the five objects are never found.
    assert average_precision(right, scores, 5) == pytest.approx((1 + 2 / 3 + 1 / 2) / 5)
    # 0, 1, 1: precisions 1/2, 2/3, of which the second holds for both.
    assert average_precision(np.array([0.0, 1, 1]), scores[:3], 2) == pytest.approx(2 / 3)


def test_nouns_weigh_alike_and_frames_without_detections_are_left_out():
    frames = [
        (objects((BOX, 1, 1, 1.0, 0.9)), objects((BOX, 1, 1, 1.0))),
        (objects((BOX, 1, 1, 1.0, 0.8)), objects((BOX, 1, 1, 1.0))),
        (objects((BOX, 1, 1, 1.0, 0.7)), objects((BOX, 2, 1, 1.0))),  # a free mistake
        (objects(), objects((AWAY, 1, 1, 1.0))),  # as the challenge's tool has it
    ]
    assert top5_map(frames)["noun"] == 50
    assert top5_map(frames[-1:]) == dict.fromkeys(("noun", "noun_verb", "noun_ttc", "overall"), 0)


def results(**changed):
    row = {"box": [1.0, 2.0, 3.0, 4.0], "noun_category_id": 1, "verb_category_id": 0}
    row |= {"time_to_contact": 0.5, "score": 0.25} | changed
    return {"version": "1.0", "challenge": CHALLENGE, "results": {"a": [row], "b": []}}


def test_results_go_through_json_and_pass_the_challenge_s_check():
    found = objects(([1.5, 2, 3, 4], 1, 0, 0.5, 0.25))
    content = results() | {"results": {"a": found.to_json(), "b": objects().to_json()}}
    read = json.loads(json.dumps(content))
    check_results(read, ["a", "b"])
    again = Objects.from_json(read["results"]["a"])
    assert again.boxes.tolist() == [[1.5, 2, 3, 4]]
    assert again.to_json() == found.to_json()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (results(score=1), "uid a: score is 1, expected float"),
        (results(noun_category_id=1.0), "noun_category_id is 1.0"),
        (results(box=[1.0, 2.0]), r"box is \[1.0, 2.0\]"),
        (results() | {"version": "2"}, "version is '2', expected '1.0'"),
        (results() | {"results": {"a": []}}, "no results for 1 uids .* such as b"),
    ],
)
def test_other_results_are_refused_by_name(content, complaint):
    with pytest.raises(ValueError, match=complaint):
        check_results(content, ["a", "b"])
