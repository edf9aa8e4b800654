"""`python -m control.traffic`: the same as `phaseline traffic`."""

import typer

from control.cli.traffic import traffic

typer.run(traffic)
