"""Write the answers: the table and, next to it, the page; both or neither, and never over an input file."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.atomic import check_writable, replace_files
from eval.errors import UserError, writing
from rerank.answers.answers import Answers
from rerank.answers.files import page_path
from rerank.answers.first_stage import FirstAnswers
from rerank.answers.page import answers_page
from rerank.answers.table import write_answers


def check_output(output: Path, sources: Mapping[str, str | None]) -> None:
    """Create the output's folder, and check that it can be written.

    Args:
        sources: option -> its value, of the input files.

    Raises:
        WriteError: it cannot be written, or a folder has the file's name.
        UserError: the file would overwrite an input file.
    """
    for option, source in sources.items():
        for path in (output, page_path(output)):
            if source is not None and path.exists() and Path(source).exists() and path.samefile(source):
                raise UserError(f"--output {output}: {path} is what {option} names, and would be overwritten. Give another name")
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        check_writable(output, page_path(output))
        tempfile.TemporaryFile(dir=output.parent).close()


def write_output(output: Path, found: FirstAnswers, answers: Sequence[Answers], made_by: Mapping[str, Any], num_shown: int) -> Path | None:
    """Write the table and, next to it, a page of num_shown queries (0: no page); returns the page's path, if there is one.

    Args:
        made_by: settings of the run, for the table's metadata; "model" and "rerank" are on the page too, as are
            "min_precision" and a "calibration", where there is one.

    Raises:
        WriteError: they cannot be written.
    """
    writers: Any = {output: lambda path: write_answers(path, output.suffix.lower(), found, answers, made_by)}
    page = page_path(output) if num_shown else None
    if page is not None:
        about = {"model": made_by["model"], "reranker": made_by["rerank"], "table": output.name}
        if "calibration" in made_by:
            about["calibration"] = "%: the probability that the answer is relevant, as calibrated."
            if (least := made_by["min_precision"]) is not None:
                about["calibration"] += f" Answers whose score does not reach a precision of {100 * least:g}% are left out."
        writers[page] = answers_page(page, found, answers, num_shown, about)
    with writing(output):
        replace_files(writers)
    return page
