"""Run by `test_examples` with the interpreter that has Ray: the examples of a page, in their order.

Arguments: the page, headings of its sections joined by commas, and the file that gets what the sh blocks printed, as
JSON. All blocks share their names, as if they were typed into one session, in which there are `images`.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

from rewriter.demo import load_digits_test


def blocks(text, heading):
    """(language, code, number of its first line) of each block of a section."""
    start = text.index(f"\n## {heading}\n")
    end = text.find("\n## ", start + 1)
    for found in re.finditer(r"```(python|sh)\n(.*?)```", text[start : None if end < 0 else end], re.DOTALL):
        yield found[1], found[2], text.count("\n", 0, start + found.start(2))


def main():
    page, headings, result = sys.argv[1:]
    text = Path(page).read_text("utf-8")
    names, printed = {"__name__": "page", "images": load_digits_test()[0]}, []
    for heading in headings.split(","):
        for language, code, line in blocks(text, heading):
            if language == "python":
                # So many empty lines let a traceback show the page's own line.
                exec(compile("\n" * line + code, page, "exec"), names)  # noqa: S102 - our own page
            elif "trt-rewriter" not in code:  # those need TensorRT, which is elsewhere
                done = subprocess.run(["bash", "-euc", code], capture_output=True, text=True, check=True)
                printed.append(done.stdout)
    found = {"printed": printed, "answers": len(names.get("answers", ())), "digits": names["outputs"]["digit"].tolist()}
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
