"""The networks and the batch of `language_step`; only the standard library."""

from dataclasses import replace

from decoding_cases import CASES

TEACHER = CASES["35M"]
STUDENT = replace(CASES["7M"], vocabulary=TEACHER.vocabulary)
BATCH, LENGTH = 4, 256
