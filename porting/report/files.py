"""A report on disk: `<stem>.report.json` and `<stem>.report.html`, both whole or neither."""

from __future__ import annotations

import json
from pathlib import Path

from porting import artifact
from porting.errors import Defect, ErrorKind, PortingError
from porting.report.page import render
from porting.report.schema import Report


def write(report: Report, folder: Path, stem: str) -> tuple[Path, Path]:
    """Write a report in both forms, replacing an earlier one of the same name; the folder is made if need be.

    Args:
        report: a report as `porting.report.schema` describes it.
        folder: where.
        stem: the files' name, such as that of the weights without `.pth`.

    Returns:
        the JSON file, and the page.

    Raises:
        PortingError: as `schema.check` and `page.render` say, with nothing written; output.
    """
    if not stem or Path(stem).name != stem:
        raise PortingError(ErrorKind.OUTPUT, folder, [Defect("report", repr(stem), "a plain file name")])
    page = render(report)  # first: it checks the report, and may lack a package
    artifact.prepare_folder(folder)
    data, shown = folder / f"{stem}.report.json", folder / f"{stem}.report.html"
    with artifact.temporary_file(folder) as json_file, artifact.temporary_file(folder) as html_file:
        artifact.write_text(json_file, as_text(report))
        artifact.write_text(html_file, page)
        artifact.publish({data: json_file, shown: html_file})
    return data, shown


def as_text(report: Report) -> str:
    """The report as JSON, with one layer, run or fault a line: short, and still good to read and to compare by line."""
    fields = []
    for name, value in report.items():
        if isinstance(value, list) and value:
            items = ",\n".join(f"    {json.dumps(item, ensure_ascii=False)}" for item in value)
            fields.append(f"  {json.dumps(name)}: [\n{items}\n  ]")
        else:
            fields.append(f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(fields) + "\n}\n"
