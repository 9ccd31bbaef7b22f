"""Small files in exactly the formats in which the benchmarks are published."""

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image as PILImage


def png(shade: int = 0, size: tuple[int, int] = (64, 48)) -> bytes:
    """An image of one grey."""
    buffer = io.BytesIO()
    PILImage.new("RGB", size, (shade, shade, shade)).save(buffer, format="PNG")
    return buffer.getvalue()


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def vl_row(id: str, *, ranking: tuple[int, int] = (0, 1), query: str = "What is it?", **changes) -> dict[str, Any]:
    row = {
        "id": id,
        "query": query,
        "response": [f"good of {id}", f"bad of {id}"] if ranking == (0, 1) else [f"bad of {id}", f"good of {id}"],
        "image": {"bytes": png(), "path": "0.jpg"},
        "human_ranking": list(ranking),
        "models": ["one", "other"],
        "judge": "human",
        "rationale": None,
        "query_source": "COCO",
        "ground_truth": None,
    }
    return {**row, **changes}


def vl_rewardbench(folder: Path, ids: list[str]) -> Path:
    return write_parquet(
        folder / "test-00000-of-00001.parquet", [vl_row(id, ranking=(n % 2, 1 - n % 2)) for n, id in enumerate(ids)]
    )


def rb2_row(id: str, subset: str, *, num_correct: int = 1, num_wrong: int = 3, **changes) -> dict[str, Any]:
    row = {
        "id": id,
        "prompt": f"Question {id} of {subset}?",
        "chosen": [f"right {n} of {id}" for n in range(num_correct)],
        "rejected": [f"wrong {n} of {id}" for n in range(num_wrong)],
        "num_correct": num_correct,
        "num_rejected": num_wrong,
        "total_completions": num_correct + num_wrong,
        "models": ["some model"],
        "subset": subset,
        "additional_metadata": {"category": None},
    }
    return {**row, **changes}


def reward_bench_2(folder: Path) -> Path:
    """Two rows of Factuality, one of Math, and two prompts of Ties, each with its ref."""
    ties = [
        rb2_row(f"{kind}:{n}", "Ties", num_correct=right, num_wrong=2)
        for n in (0, 1)
        for kind, right in (("ref", 1), ("tied", 2))
    ]
    rows = [rb2_row("0", "Factuality"), rb2_row("1", "Factuality"), rb2_row("2", "Math"), *ties]
    return write_parquet(folder / "rb2.parquet", rows)


def vstar(folder: Path, labels: str = "ABCD") -> Path:
    rows = []
    for number, label in enumerate(labels):
        category = "direct_attributes" if number % 2 == 0 else "relative_position"
        options = ["rubber", "cotton", "kevlar", "leather"] if number % 2 == 0 else ["left", "right", "above", "below"]
        listed = "\n".join(f"({letter}) {option}" for letter, option in zip("ABCD", options, strict=True))
        name = f"{category}/sa_{number}.jpg"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", (90, 60), (number, 0, 0)).save(folder / name)
        text = f"What is the material of glove {number}?\n{listed}\nAnswer with the option's letter from the given choices directly."
        rows.append({"text": text, "category": category, "label": label, "question_id": str(number), "image": name})
    return write_jsonl(folder / "test_questions.jsonl", rows)


def hrbench_rows(num_questions: int = 2) -> list[dict[str, Any]]:
    """Each question in four cycles: the right option moves on."""
    rows = []
    for question in range(num_questions):
        options = [f"{question}{letter}" for letter in "wxyz"]  # the first one is right
        for cycle in range(4):
            shown = options[-cycle:] + options[:-cycle]
            rows.append(
                {
                    "index": 4 * question + cycle,
                    "question": f"What does sign {question} say?",
                    "answer": "ABCD"[cycle],
                    "category": "single" if question % 2 == 0 else "cross",
                    **dict(zip("ABCD", shown, strict=True)),
                    "cycle_category": f"cycle_{cycle}",
                    "image": base64.b64encode(png(question)).decode(),
                }
            )
    return rows


def hrbench(folder: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    rows = hrbench_rows() if rows is None else rows
    path = folder / "hr_bench_4k.tsv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


def arm_row(idx: int | str, rm_tag: str, gt: object, **changes) -> dict[str, Any]:
    num_answers = {"single_rm": 1, "4-way-pair_rm": 4}.get(rm_tag, 2)
    row = {
        "idx": idx,
        "rm_tag": rm_tag,
        "question": f"<image>\nQuestion {idx}?",
        "preds": [f"answer {n} of {idx}" for n in range(num_answers)],
        "gt": gt,
        "images": ["scene.png"],
    }
    return {**row, **changes}


def armbench_vl(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "scene.png").write_bytes(png())
    write_jsonl(
        folder / "fine_grained_perception.jsonl",
        [arm_row(0, "2-way-pair_rm", 2), arm_row("relpos-cb8b258c", "4-way-pair_rm", 3)],
    )
    write_jsonl(
        folder / "multimodal_long_document.jsonl",
        [arm_row(0, "single_rm", "True", doc_id="report.pdf"), arm_row(1, "pair_rm", 1, doc_id="r.pdf")],
    )
    constraint = [{"key": "length", "value": "At most two sentences."}]
    write_jsonl(
        folder / "multimodal_instruction_following.jsonl", [arm_row(7, "single_rm", False, constraints=constraint)]
    )
    return folder
