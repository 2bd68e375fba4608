"""What a person runs: the `subjectloom` command, the report, the scripts that train the sample models."""
