"""Annotations as their authors publish them: what each becomes, or what an error says to do."""

import json
from pathlib import Path

import pytest

from vstar_fast.config import DataConfig
from vstar_fast.errors import DataError
from vstar_fast.readers import read


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(f"video {name}".encode())


def write(path: Path, value) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def read_all(path, **config):
    return read(DataConfig(path=str(path), **{"dev_fraction": 0.0, "test_fraction": 0.0, **config}))


def shown(videos) -> dict:
    return {v.id: (v.split, [(x.kind, x.value) for x in v.labels]) for v in videos}


def test_something_something_by_template_with_its_splits(tmp_path):
    touch(tmp_path, "20bn-something-something-v2/1.webm", "20bn-something-something-v2/2.webm", "clips/3.webm")
    rows = [
        {
            "id": "1",
            "label": "holding potato next to bottle",
            "template": "Holding [something] next to [something]",
            "placeholders": ["potato", "bottle"],
        },
        {"id": "2", "label": "pushing a pen", "template": "Pushing [something]", "placeholders": ["a pen"]},
    ]
    write(tmp_path / "something-something-v2-train.json", rows[:1])
    write(tmp_path / "something-something-v2-validation.json", rows[1:])
    write(tmp_path / "something-something-v2-test.json", [{"id": "3"}])
    write(tmp_path / "something-something-v2-labels.json", {"Holding something next to something": "0"})
    videos, rejected, sets = read_all(tmp_path)
    assert shown(videos) == {
        "1": ("train", [("class", "Holding something next to something")]),
        "2": ("dev", [("class", "Pushing something")]),
    }
    assert [(r.id, r.reason) for r in rejected] == [("3", "no_label")]
    assert sets == {"action": ("Holding something next to something", "Pushing something")}


def test_ucf101_lists_with_and_without_class_numbers(tmp_path):
    names = [f"UCF-101/{c}/v_{c}_g0{n}_c01.avi" for c in ("ApplyEyeMakeup", "YoYo") for n in (1, 8)]
    touch(tmp_path, *names)
    lists = tmp_path / "ucfTrainTestlist"
    write(lists / "classInd.txt", "1 ApplyEyeMakeup\n2 YoYo\n")
    inner = [n.removeprefix("UCF-101/") for n in names]
    train = write(lists / "trainlist01.txt", f"{inner[1]} 1\r\n{inner[3]} 2\r\n")
    test = write(lists / "testlist01.txt", f"{inner[0]}\n{inner[2]}\n")
    videos, rejected, sets = read_all(train, extra=(str(test),), root=str(tmp_path))
    assert rejected == [] and sets == {"action": ("apply eye makeup", "yo yo")}
    assert [(v.split, v.labels[0].value, v.labels[0].aliases) for v in videos] == [
        ("train", "apply eye makeup", ("ApplyEyeMakeup",)),
        ("train", "yo yo", ("YoYo",)),
        ("test", "apply eye makeup", ("ApplyEyeMakeup",)),
        ("test", "yo yo", ("YoYo",)),
    ]
    (lists / "classInd.txt").unlink()
    with pytest.raises(DataError, match=r"label '1' is a number, not a name; .* data.class_names"):
        read_all(train, root=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("brush_hair_test_split1.txt", "a.avi 1 \nb.avi 2 \n", "is a split of HMDB51"),
        ("P03_cam01_P03_cereals.txt", "1-30 SIL  \n31-150 take_bowl  \n", "lists segments in pictures"),
        ("raw.txt", "a.mp4 300 4\n", "'300 4' after the path is several numbers"),
        ("list.csv", "a.mp4 3\nb.mp4 4\n", "a list without a header line, a path and its class in each"),
        ("scores.csv", "video,points\na.mp4,3\n", 'columns = {number = "points"} for a score'),
        ("classes.csv", "video,label\na.mp4,3\n", "label '3' is a number, not a name"),
        ("hacs.csv", "classname,youtube_id,subset,start,end,label\nrun,a,training,0,2,1\n", "label '1' is a number"),
        ("t.csv", "video,label,start_frame,stop_frame\na.mp4,run,3,90\n", "count pictures; give start and end in sec"),
        ("aqa.pkl", "", "a pickle can run any code when it is read"),
        ("train.parquet", "", "write its rows as JSON lines, e.g. with pandas"),
    ],
)
def test_what_would_be_misread_is_refused_with_the_remedy(tmp_path, name, text, message):
    touch(tmp_path, "a.mp4", "a.avi", "b.avi")
    with pytest.raises(DataError) as error:
        read_all(write(tmp_path / name, text))
    assert message in str(error.value)


def test_activitynet_database_and_captions(tmp_path):
    touch(tmp_path, "clips/v_abc.mp4", "clips/v_two.mkv", "clips/v_gone.mp4")
    segment = {"segment": [0.5, 8.0], "label": "Drinking coffee"}
    again = {"segment": [9.0, 9.5], "label": "Drinking coffee"}
    other = {"segment": [2.0, 4.0], "label": "Archery"}
    database = {
        "abc": {"duration": 10.0, "subset": "training", "annotations": [segment, again], "url": "x"},
        "two": {"duration": 9.0, "subset": "validation", "annotations": [segment, other], "url": "y"},
        "gone": {"duration": 9.0, "subset": "testing", "annotations": [], "url": "z"},
    }
    taxonomy = [{"nodeId": 1, "nodeName": "Archery", "parentId": None}]
    write(tmp_path / "activity_net.v1-3.min.json", {"version": "1.3", "taxonomy": taxonomy, "database": database})
    videos, rejected, sets = read_all(tmp_path / "activity_net.v1-3.min.json")
    assert shown(videos) == {
        "abc": ("train", [("class", "Drinking coffee")]),
        "two": ("dev", [("interval", (0.5, 8.0)), ("interval", (2.0, 4.0))]),
    }
    assert [(r.id, r.reason) for r in rejected] == [("abc", "bad_label"), ("gone", "no_label")]
    assert "'Drinking coffee' happens 2 times" in rejected[0].detail and sets == {"action": ("Drinking coffee",)}
    row = {"duration": 10.0, "timestamps": [[0, 4], [6, 5], [1, 2], [3, 4]], "sentences": ["a b", "c", "d", " D "]}
    write(tmp_path / "captions.json", {"v_abc": row})
    videos, rejected, _ = read_all(tmp_path / "captions.json")
    assert shown(videos) == {"v_abc": ("train", [("interval", (0.0, 4.0))])}
    assert ["'c' needs 0 <= start < end" in r.detail for r in rejected] == [True, False, False]


def test_coin_steps_count_from_the_start_of_the_window(tmp_path):
    touch(tmp_path, "abc.mp4")
    steps = [{"id": "1", "segment": [12.0, 15.0], "label": "open the box"}]
    row = {"class": "OpenBox", "start": 10.0, "end": 30.0, "duration": 60.0, "subset": "training", "annotation": steps}
    (video,), _, _ = read_all(write(tmp_path / "COIN.json", {"database": {"abc": {**row, "recipe_type": 3}}}))
    assert (video.start_s, video.end_s, video.labels[0].value) == (10.0, 30.0, "OpenBox")
    assert (video.labels[1].value, video.labels[1].event) == ((2.0, 5.0), "open the box")


def test_charades_actions_by_code(tmp_path):
    touch(tmp_path, "Charades_v1_480/YSKX3.mp4", "Charades_v1_480/7UPGT.mp4", "Charades_v1_480/NONE0.mp4")
    write(tmp_path / "Charades_v1_classes.txt", "c000 Holding some clothes\nc092 Opening a window\n")
    header = "id,subject,scene,quality,script,actions,length\n"
    train = 'YSKX3,HR43,Kitchen,6,"A person, cooks.",c092 11.90 21.20;c000 0.00 12.60,33.67\nNONE0,H,K,6,x,,9\n'
    write(tmp_path / "Charades_v1_train.csv", header + train)
    write(tmp_path / "Charades_v1_test.csv", header + "7UPGT,HR43,Kitchen,6,x,c092 0.00 3.00,9\n")
    videos, rejected, _ = read_all(tmp_path)
    assert shown(videos) == {
        "7UPGT": ("test", [("class", "Opening a window"), ("interval", (0.0, 3.0))]),
        "YSKX3": ("train", [("interval", (11.9, 21.2)), ("interval", (0.0, 12.6))]),
    }
    assert [(r.id, r.reason) for r in rejected] == [("NONE0", "no_label")]


NEXT = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"


def test_next_qa_answers_are_numbers_of_options(tmp_path):
    touch(tmp_path, "NExTVideo/1164/4010069381.mp4", "NExTVideo/1/5.mp4")
    rows = [
        "4010069381,369,640,480,how do they play,0,6,CH,roll the handle,tap their feet,strum,hit,pat\n",
        "4010069381,369,640,480,how many people,2,7,DC,1,2,3,4,5\n",
        "4010069381,369,640,480,why,5,8,CW,a b,c d,e f,g h,i j\n",
    ]
    write(tmp_path / "train.csv", NEXT + "".join(rows))
    write(tmp_path / "val.csv", NEXT + rows[1].replace("4010069381", "5"))
    write(tmp_path / "map_vid_vidorID.json", {"4010069381": "1164/4010069381"})
    (video, other), rejected, sets = read_all(tmp_path)
    assert [(x.kind, x.value) for x in video.labels] == [("choice", "roll the handle"), ("choice", "3")]
    assert (other.split, other.labels[0].value) == ("dev", "3")
    assert sets[video.labels[1].set] == ("1", "2", "3", "4", "5") and video.split == "train"
    assert [r.reason for r in rejected] == ["not_in_label_set"]
    assert "answer '5' is none of 5 options, counted from 0" in rejected[0].detail


def test_a_number_for_an_answer_that_may_count_from_0_or_1_is_refused(tmp_path):
    touch(tmp_path, "a.mp4")
    row = {"video": "a.mp4", "question": "what", "answer": 1, "options": ["up", "down", "left"]}
    with pytest.raises(DataError, match="counted from 0 or 1; write the option's letter or text"):
        read_all(write(tmp_path / "qa.json", [row]))
    rows = [row, {**row, "question": "where", "answer": 3}]
    (video,), rejected, _ = read_all(write(tmp_path / "qa.json", rows))
    assert [x.value for x in video.labels] == ["up", "left"] and rejected == []
    counts = [{**row, "options": ["3", "1", "2", "4"], "answer": str(n), "question": f"q{n}"} for n in (1, 2)]
    (video,), rejected, _ = read_all(write(tmp_path / "qa.json", counts))
    assert [x.value for x in video.labels] == ["1", "2"] and rejected == []


def test_tgif_qa_columns_of_options(tmp_path):
    touch(tmp_path, "gifs/tumblr_a.gif", "gifs/tumblr_b.gif")
    header = "gif_name\tquestion\ta1\ta2\ta3\ta4\ta5\tanswer\tvid_id\tkey\n"
    row = "{}\tWhat does it do ?\tstep\tclap\tnod\tblink\tspin\t{}\tACTION4\t1\n"
    write(tmp_path / "Train_action_question.csv", header + row.format("tumblr_a", 4) + row.format("tumblr_b", 0))
    write(tmp_path / "Test_action_question.csv", header)
    videos, _, _ = read_all(tmp_path)
    assert [v.labels[0].value for v in videos] == ["spin", "step"]


def test_msrvtt_qa_star_mvbench_and_egoschema(tmp_path):
    touch(tmp_path, "TrainValVideo/video6513.mp4", "6H78U.mp4", "166583.webm", "q-1.mp4")
    row = {"answer": "couch", "category_id": 14, "id": 0, "question": "what is a person on?", "video_id": 6513}
    (video,), _, _ = read_all(write(tmp_path / "train_qa.json", [row, {**row, "id": 1, "answer": 2, "question": "n?"}]))
    assert shown([video]) == {"TrainValVideo/video6513": ("train", [("answer", "couch"), ("answer", "2")])}
    star = {"question_id": "Interaction_T1_13", "question": "Which?", "video_id": "6H78U", "start": 11.1, "end": 19.6}
    choices = [{"choice_id": i, "choice": x, "choice_program": []} for i, x in enumerate(["The bag.", "The box."])]
    (video,), _, _ = read_all(write(tmp_path / "STAR.json", [{**star, "answer": "The box.", "choices": choices}]))
    assert (video.start_s, video.end_s, video.labels[0].value) == (11.1, 19.6, "The box.")
    mvbench = {"video": "166583.webm", "question": "What?", "candidates": ["Not sure", "Piling"], "answer": "Piling"}
    (video,), _, sets = read_all(write(tmp_path / "mvbench.json", [mvbench]))
    assert (video.labels[0].kind, sets[video.labels[0].set]) == ("choice", ("Not sure", "Piling"))
    ego = {
        "video": "q-1",
        "question": "Why?",
        "answer": "B",
        **{f"option {i}": x for i, x in enumerate(["up", "down"])},
    }
    (video,), _, _ = read_all(write(tmp_path / "ego.json", [ego]))
    assert video.labels[0].value == "down"


def test_epic_kitchens_clock_times_and_the_label_to_name(tmp_path):
    touch(tmp_path, "P01/videos/P01_01.MP4")
    header = "narration_id,video_id,start_timestamp,stop_timestamp,start_frame,stop_frame,narration,verb,verb_class\n"
    rows = "P01_01_0,P01_01,00:00:00.14,00:00:03.37,8,202,open door,open,3\n"
    file = write(tmp_path / "EPIC_100_train.csv", header + rows)
    with pytest.raises(DataError, match="has no column for the label"):
        read_all(file)
    (video,), _, _ = read_all(file, columns={"label": "narration"})
    assert (video.start_s, video.end_s, video.labels[0].value) == (0.14, 3.37, "open door")


def test_llava_conversations_are_questions_and_choices(tmp_path):
    touch(tmp_path, "academic_source/a.mp4")
    options = "What?\nA. a cup.\nB. a hat.\nPlease provide your answer by stating the letter followed by the option."
    talk = [
        {"from": "human", "value": f"<image>\n{options}"},
        {"from": "gpt", "value": "B. a hat."},
        {"from": "human", "value": "Where is it?"},
        {"from": "gpt", "value": "On the table."},
        {"from": "human", "value": "Describe it."},
        {"from": "gpt", "value": "It is round. " * 20},
    ]
    row = {"id": "x", "conversations": talk, "data_source": "0_30_s", "video": "academic_source/a.mp4"}
    (video,), rejected, _ = read_all(write(tmp_path / "mc.json", [row, {**row, "id": "y", "conversations": [1]}]))
    assert [(x.kind, x.value, x.question) for x in video.labels] == [
        ("choice", "a hat.", "What? Options: a cup., a hat.."),
        ("answer", "On the table.", "Where is it?"),
    ]
    assert [r.reason for r in rejected] == ["bad_label", "wrong_type"]
    assert "the answer has 60 words: it is a description" in rejected[0].detail


def test_scores_are_numbers_and_only_where_nothing_else_is_the_label(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4")
    rows = "video,action,score\na,107B,84.5\nb,5231D,-1e1\n"
    videos, _, _ = read_all(write(tmp_path / "scores.csv", rows.replace(",action", ",x")))
    assert [(x.kind, x.name, x.value) for v in videos for x in v.labels] == [
        ("number", "score", 84.5),
        ("number", "score", -10.0),
    ]
    videos, _, _ = read_all(tmp_path / "scores.csv", columns={"number": "score", "label": "x"})
    assert [x.value for x in videos[0].labels] == ["107B", 84.5]
    videos, _, _ = read_all(write(tmp_path / "dives.csv", rows))
    assert [x.value for v in videos for x in v.labels] == ["107B", "5231D"]


def test_video_folder_of_split_folders_with_metadata(tmp_path):
    for split in ("train", "validation", "test"):
        touch(tmp_path, f"{split}/a.mp4")
        write(tmp_path / split / "metadata.jsonl", json.dumps({"file_name": "a.mp4", "label": "run"}))
    videos, rejected, _ = read_all(tmp_path)
    assert sorted(v.split for v in videos) == ["dev", "test", "train"] and rejected == []


def test_one_file_is_dealt_out_whatever_it_is_called_and_several_need_one_to_train_on(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4")
    for name in ("test", "val"):
        write(tmp_path / f"{name}.csv", f"video,label\n{'ab'[name == 'val']}.mp4,run\n")
    assert {v.split for v in read_all(tmp_path / "test.csv")[0]} == {"train"}
    assert {v.split for v in read_all(tmp_path)[0]} == {"train"}
    write(tmp_path / "train.csv", "video,label,split\na.mp4,run,test\nb.mp4,run,\n")
    videos, rejected, _ = read_all(tmp_path / "train.csv", extra=(str(tmp_path / "val.csv"),))
    assert [(Path(v.path).name, v.split) for v in videos] == [("a.mp4", "test"), ("b.mp4", "train")]
    assert [r.reason for r in rejected] == ["duplicate_video"]


def test_a_name_that_two_files_have_is_refused(tmp_path):
    touch(tmp_path, "x/1.mp4", "y/1.mp4")
    write(tmp_path / "t.csv", "video,label\n1,run\nx/1,jump\n")
    (video,), rejected, _ = read_all(tmp_path / "t.csv")
    assert video.labels[0].value == "jump"
    assert "'1' may be x/1.mp4 or y/1.mp4; give the path from" in rejected[0].detail


def test_clips_in_one_folder_beside_their_table_are_no_class(tmp_path):
    touch(tmp_path, "videos/a.mp4", "videos/b.mp4")
    file = write(
        tmp_path / "annotations.json", [{"video": "a.mp4", "label": "run"}, {"video": "b.mp4", "label": "hop"}]
    )
    with pytest.raises(DataError, match=r"has one class, 'videos', and annotations.json lies beside it: give /"):
        read_all(tmp_path)
    assert {v.labels[0].value for v in read_all(tmp_path, reader="folder")[0]} == {"videos"}
    assert {v.labels[0].value for v in read_all(file)[0]} == {"run", "hop"}


def test_split_folders_in_paths_are_the_split_where_rows_name_none(tmp_path):
    names = [f"{split}/{i}.mp4" for split in ("train", "val", "test") for i in range(6)]
    touch(tmp_path, *names, "bus/1.mp4")
    write(tmp_path / "metadata.csv", "file_name,label\n" + "".join(f"{x},run\n" for x in names))
    videos, _, _ = read(DataConfig(path=str(tmp_path)))
    assert all(v.split == {"train": "train", "val": "dev", "test": "test"}[v.id.split("/")[0]] for v in videos)
    write(tmp_path / "metadata.csv", "file_name,label\n" + "".join(f"{x},run\n" for x in (*names[:6], "bus/1.mp4")))
    videos, _, _ = read(DataConfig(path=str(tmp_path)))  # a train is a class as well
    assert len({v.split for v in videos if v.id.startswith("train/")}) > 1


def test_columns_that_are_only_called_like_segments_or_templates_leave_the_label_alone(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4")
    rows = [
        {"video": "a.mp4", "label": "run", "actions": ["run", "walk"], "template": 3, "placeholders": []},
        {"video": "b.mp4", "label": "hop", "annotations": [1], "score": 3, "count": 2},
    ]
    videos, rejected, _ = read_all(write(tmp_path / "t.json", rows))
    assert [[x.value for x in v.labels] for v in videos] == [["run"], ["hop"]] and rejected == []


@pytest.mark.parametrize("label", [["run"], {"name": "run"}, None, True, 3], ids=str)
def test_a_label_of_a_segment_that_is_no_name_is_one_rejected_row(tmp_path, label):
    touch(tmp_path, "a.mp4", "b.mp4")
    rows = [
        {"video": "a.mp4", "annotations": [{"segment": [0, 1], "label": label}]},
        {"video": "b.mp4", "label": "hop"},
    ]
    videos, rejected, _ = read_all(write(tmp_path / "t.json", rows))
    assert [v.id for v in videos] == ["b"] and len(rejected) == 1


def test_usual_names_in_any_case_and_with_spaces(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4")
    path = write(tmp_path / "data.csv", "Video ID,Action,Start Time,END-TIME,Subset\na,run,1,2,Train\nb,jump,,,test\n")
    videos, rejected, _ = read_all(path)
    assert not rejected
    assert [(v.labels[0].value, v.start_s, v.end_s, v.split) for v in videos] == [
        ("run", 1.0, 2.0, "train"),
        ("jump", None, None, "test"),
    ]
