"""What can be said of a fleet to attach it: kinds, controllers, models, devices. Read from the tables that check it.

Nothing is decided here; a form that is drawn from it knows of a new kind as soon as there is one.
"""

from __future__ import annotations

from control.fleets.attached.attachment import DTYPE_BYTES, KINDS
from control.fleets.attached.permission import DECLARED
from control.fleets.attached.steering.controllers import CONTROLLERS, WITHOUT_PAGES
from control.fleets.attached.types import AttachChoices, ControllerChoice, KindChoice
from engine.device_catalogue import device_names, model_names


def choices() -> AttachChoices:
    return AttachChoices(
        kinds=tuple(
            _kind(name)
            for name in sorted(KINDS, key=lambda each: (each in WITHOUT_PAGES, each == "openai", each != "vllm", each))
        ),
        controllers=tuple(
            ControllerChoice(
                name=name, can=tuple(sorted(kind.can)), options=kind.options, needs=kind.needs, sends=kind.sends
            )
            for name, kind in sorted(CONTROLLERS.items())
        ),
        models=model_names(),
        devices=device_names(),
        dtypes=tuple(DTYPE_BYTES),
    )


def _kind(name: str) -> KindChoice:
    return KindChoice(
        name=name,
        can=tuple(sorted(DECLARED.get(name, frozenset()))),
        controllers=tuple(sorted(each for each, kind in CONTROLLERS.items() if name in kind.dialects)),
        needs_controller=name in WITHOUT_PAGES,
    )
