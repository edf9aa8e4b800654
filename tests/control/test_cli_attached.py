"""What the command line says of attached fleets before a plane is asked, and on a plane without workers of its own."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from control.cli.commands import attached_line
from control.cli.main import app
from control.fleets.attached.types import AttachedInfo, Attachment


def info(name: str) -> AttachedInfo:
    return AttachedInfo(attachment=Attachment(name=name, kind="vllm"), who="ann", at_unix_s=1.0)


def test_a_plane_without_workers_names_what_is_attached_or_how_to_attach() -> None:
    assert attached_line([info("prod"), info("dyn")]) == "attached: dyn, prod; `phaseline --fleet NAME status`"
    assert attached_line([]) == "nothing is attached: `phaseline attach`"


@pytest.mark.parametrize("option", ["--peak-tflops", "--peak-gb-s"])
def test_a_peak_that_cannot_be_is_refused_in_the_words_in_which_it_was_typed(option: str) -> None:
    told = ["attach", "x", "--kind", "vllm", "--targets", "decode=http://127.0.0.1:1", option, "-3"]
    result = CliRunner().invoke(app, told)
    assert result.exit_code == 2
    assert f"Invalid value for '{option}': -3 is not above 0" in result.output
