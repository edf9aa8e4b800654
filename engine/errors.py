"""Every error of the engine, as one tree. `retry_helps` says whether the same call may succeed later, unchanged.

EngineError
  ModelFolderError           a model folder that cannot be served
    MissingFileError           a file that must be there is not
    UnsupportedModelError      not a Llama-family decoder, or a feature of it that is not built
    ConfigValueError           a field of config.json with a value out of bounds
    WeightShapeError           a tensor that is absent or has another shape than config.json says
  ConversionError            the GGUF could not be turned into a model folder
  ExactModeUnavailable       no row count on this CPU gives the same bits for every batch
  KvPoolError                a block index, size or layout that this pool cannot take
  WireError                  a frame that is malformed or over its bound
  ConnectionLost             the peer is gone, refused us, or did not answer in time
  HandoffError               KV could not be moved between two workers
    LayoutMismatch             the two pools do not hold the same model, dtype or block layout
  MeterError                 a meter page that cannot be made, found or read
  CatalogueError             a device or model that data/*.toml does not know
  CalibrationError           the CPU's ceilings could not be measured
"""

from __future__ import annotations


class EngineError(Exception):
    """Base of all engine errors. The message is one line and names field, value and bound."""

    retry_helps: bool = False


class ModelFolderError(EngineError):
    """A model folder that cannot be served as it lies there."""


class MissingFileError(ModelFolderError):
    """A file that a model folder must hold is not there."""


class UnsupportedModelError(ModelFolderError):
    """Not a Llama-family decoder, or a variant of it that this engine does not compute."""


class ConfigValueError(ModelFolderError):
    """A field of config.json is absent, of the wrong type, or out of bounds."""


class WeightShapeError(ModelFolderError):
    """A weight is absent, or its shape or dtype is not what config.json implies."""


class ConversionError(EngineError):
    """The GGUF could not be turned into a model folder."""


class ExactModeUnavailable(EngineError):
    """No row count makes the linears of this model independent of the batch on this CPU."""


class KvPoolError(EngineError):
    """A block index, buffer size or layout that this pool cannot take."""


class WireError(EngineError):
    """A frame that is malformed or over its bound. The connection that carried it is closed."""


class ConnectionLost(EngineError):
    """The peer is gone, refused us, or did not answer in time."""

    retry_helps = True


class HandoffError(EngineError):
    """KV could not be moved between two workers; the gateway may prefill again."""

    retry_helps = True


class LayoutMismatch(HandoffError):
    """The two pools do not hold the same model, dtype or block layout. Names the field and both values."""

    retry_helps = False


class MeterError(EngineError):
    """A meter page that cannot be made, found or read."""


class CatalogueError(EngineError):
    """A device or model that data/devices.toml or data/models.toml does not know, or says wrongly."""


class CalibrationError(EngineError):
    """The CPU's ceilings could not be measured."""


class WorkerConfigError(EngineError):
    """A worker cannot be made from these values. Names the field, its value and the bound."""
