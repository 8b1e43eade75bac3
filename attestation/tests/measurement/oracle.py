"""Answers questions with sev-snp-measure: a JSON array on standard input, one on standard output."""

import contextlib
import io
import json
import re
import sys

from sevsnpmeasure import guest, id_block
from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vcpu_types import CPU_SIGS
from sevsnpmeasure.vmm_types import VMMType


def signature(name):
    # Newer versions of a model than the tool knows have the model's signature.
    return CPU_SIGS.get(name) or CPU_SIGS[re.sub(r"-v\d+$", "", name)]


def measurement(question):
    return guest.calc_launch_digest(
        SevMode.SEV_SNP,
        question["vcpus"],
        signature(question["vcpu_type"]),
        question["firmware"],
        question["kernel"],
        question["initrd"],
        question["command_line"],
        question["guest_features"],
        "",
        VMMType.QEMU,
    ).hex()


def sign(question):
    return id_block.snp_calc_id_block(
        bytes.fromhex(question["measurement"]), question["id_key"], question["author_key"]
    )


answers = []
for question in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()):
        answer = sign(question) if "id_key" in question else measurement(question)
    answers.append(answer)
json.dump(answers, sys.stdout)
