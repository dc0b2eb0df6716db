"""The report of a verification: one JSON file for programs, and one HTML page for people.

`porting.report.schema` says what a report holds; it imports nothing heavy. `porting.report.files` writes both files.
"""
