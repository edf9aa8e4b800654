"""An action in the words of a log line: "resize prefill=2 decode=2", "set routing remote_share=0.5"."""

from __future__ import annotations

from control.types.commands import Action, Verb


def action_words(action: Action) -> str:
    match action.verb:
        case Verb.RESIZE:
            sizes = (("prefill", action.prefill), ("decode", action.decode), ("mixed", action.mixed))
            return "resize " + " ".join(f"{name}={size}" for name, size in sizes if size is not None)
        case Verb.FLIP:
            return f"flip {action.worker_id} to {action.role}"
        case Verb.DRAIN | Verb.UNDRAIN:
            return f"{action.verb} {action.worker_id}"
        case Verb.SET_ROUTING:
            changes = [f"{name}={value:g}" for name, value in (action.policy or {}).items()]
            changes += [f"weight of {worker_id}={weight:g}" for worker_id, weight in (action.weights or {}).items()]
            return "set routing " + " ".join(changes)
        case Verb.UNDO:
            return f"undo command {action.command_id}"
