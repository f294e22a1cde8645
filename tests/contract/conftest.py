"""Contract tests run the official SDKs in environments of their own, against the whole stack."""

collect_ignore = ["e2b_code_interpreter", "e2b_python"]
