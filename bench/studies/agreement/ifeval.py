"""How often edgelm's IFEval checks differ from the reference implementation's.

    python -m bench.studies.agreement.ifeval IFEVAL.jsonl TEXTS.jsonl [--texts 4]

The reference is the one that lm-evaluation-harness carries (lm_eval.tasks.ifeval, Google's code).
Answers are documents of the given texts in forms that the instructions ask for, so that each
instruction is followed by some and not by others. `pip install 'edgelm[evaluation]' immutabledict
nltk`; the reference also needs nltk's sentence model (punkt_tab).
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from edgelm.compress.evaluation.tasks.ifeval.ifeval import evaluate_answer, read_row


def forms(text: str, prompt: str) -> Iterator[str]:
    """An answer in forms that single instructions ask for."""
    sentences = [one.strip() for one in text.split(".") if one.strip()]
    paragraphs = [one for one in text.split("\n") if one.strip()]
    yield text
    yield text.lower()
    yield text.upper()
    yield text.replace(",", "")
    yield f'"{text}"'
    yield f"<<A title>>\n\n{text}\n\nP.S. {sentences[0]}"
    yield "\n".join(f"* {one}" for one in sentences[:3])
    yield "\n***\n".join(paragraphs[:3])
    yield "\n\n".join(paragraphs[:4])
    yield "".join(f"SECTION {number}\n{one}\n" for number, one in enumerate(paragraphs[:5], 1))
    yield f"{prompt}\n{text}"
    yield json.dumps({"answer": sentences[:2]})
    yield f"```json\n{json.dumps([text[:80]])}\n```"
    yield f"*{sentences[0]}* and *{sentences[-1]}* for [name] at [address] in [city]"
    yield f"{sentences[0]}\n******\n{sentences[-1]}"
    yield "My answer is yes."
    yield f"{text} Is there anything else I can help with?"


def reference(row: Mapping[str, Any], answer: str) -> tuple[list[bool], list[bool]]:
    """What the reference finds, strict and loose."""
    checks: Any = import_module("lm_eval.tasks.ifeval.utils")
    names, arguments = row["instruction_id_list"], row["kwargs"]
    given = checks.InputExample(row.get("key", 0), names, row["prompt"], arguments)
    strict = checks.test_instruction_following_strict(given, answer)
    loose = checks.test_instruction_following_loose(given, answer)
    return strict.follow_instruction_list, loose.follow_instruction_list


def compare(rows: Sequence[Mapping[str, Any]], texts: Sequence[str], count: int) -> None:
    """Print the disagreements by instruction."""
    checked: Counter[str] = Counter()
    followed: Counter[str] = Counter()
    strict: Counter[str] = Counter()
    loose: Counter[str] = Counter()
    for number, row in enumerate(rows, 1):
        prompt = read_row(row, number)
        chosen = random.Random(number).sample(texts, count)
        for answer in (form for text in chosen for form in forms(text, row["prompt"])):
            ours, theirs = evaluate_answer(prompt, answer), reference(row, answer)
            for place, name in enumerate(row["instruction_id_list"]):
                checked[name] += 1
                followed[name] += theirs[0][place]
                strict[name] += ours.strict[place] != theirs[0][place]
                loose[name] += ours.loose[place] != theirs[1][place]
    print("| instruction | checks | followed | differ, strict | differ, loose |")
    print("|---|---:|---:|---:|---:|")
    for name in [*sorted(checked), None]:
        counts = (checked, followed, strict, loose)
        parts = [one.total() if name is None else one[name] for one in counts]
        print(f"| {name or 'all'} | {' | '.join(f'{part:,}' for part in parts)} |")


def main() -> None:
    """Compare on files of rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rows", type=Path, help="prompts in the data set's form")
    parser.add_argument("texts", type=Path, help="documents with `text`")
    parser.add_argument("--texts", dest="count", type=int, default=4, help="texts for each prompt")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.rows.read_text().splitlines()]
    texts = [json.loads(line)["text"] for line in arguments.texts.read_text().splitlines()]
    compare(rows, [text[:2000] for text in texts if text.count(".") > 2], arguments.count)


if __name__ == "__main__":
    main()
