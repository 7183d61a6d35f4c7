"""Every error that infermesh raises on purpose.

Adapters translate third-party exceptions into these once, at the edge; pure code returns expected
failures as values and raises these for input that must be refused. Each class has a stable `code`
(what travels on the wire and stands in `--json`) and the exit code of the command line.

    MeshError                    error                  1
    ├── UsageError               usage                  2   a flag, a name, a rate or a plan file that makes no sense
    ├── MissingExtra             missing-extra          2   an optional package is not installed
    ├── ModelError               model                  1
    │   ├── ModelUnreadable      model-unreadable       1   not ONNX, truncated, empty
    │   ├── ModelInvalid         model-invalid          1   the checker or the runtime refuses it
    │   ├── ModelUnsupported     model-unsupported      1   valid, but outside what the mesh runs
    │   └── ExternalDataRefused  external-data-refused  1   weights outside the model's folder
    ├── SourceUnreadable         source-unreadable      1   a sensor's file or stream is damaged or of another format
    ├── CalibrationError       calibration            1   a sample or its labels cannot judge a model
    ├── TensorMismatch           tensor-mismatch        1   wrong name, dtype, rank, dimension or byte count
    ├── VerificationFailed       verification-failed    1   parts and whole disagree
    ├── NotFound                 not-found              3
    │   ├── NoNodes              no-nodes               3
    │   └── DeploymentNotFound   deployment-not-found   3
    ├── Timeout                  timeout                4   a deadline passed
    ├── Infeasible               infeasible             5   no plan satisfies the constraints
    ├── NodeLost                 node-lost              1   a node died, froze or became unreachable
    ├── Refused                  refused                1   a peer understood the call and said no
    │   ├── StaleGeneration      stale-generation       1   fenced: a newer plan is in force
    │   ├── ProtocolViolation    protocol-violation     1   a peer broke the stream protocol
    │   └── Overloaded           overloaded             1   a limit is reached; try later
    ├── StorageError             storage                1
    │   ├── StorageFull          storage-full           1
    │   ├── StorageReadOnly      storage-read-only      1
    │   └── FolderInUse          folder-in-use          1   another daemon owns the data folder
    ├── ListenError              listen                 1   the address cannot be bound
    ├── LabError                 lab                    1   a lab cannot be built here, or one of its parts failed
    └── EngineError              engine                 1
        ├── LoadFailed           load-failed            1
        ├── RunFailed            run-failed             1
        ├── EngineDied           engine-died            1   its process crashed or was killed
        └── EngineQuarantined    engine-quarantined     1   it died too often and is not started again
"""

from __future__ import annotations

from typing import ClassVar


class MeshError(Exception):
    """Base of all errors that a caller may want to handle.

    `message` says what and where; `hint`, where there is one, says what to do next.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(MeshError):
    code = "usage"
    exit_code = 2


class MissingExtra(MeshError):
    code = "missing-extra"
    exit_code = 2


class ModelError(MeshError):
    code = "model"


class ModelUnreadable(ModelError):
    code = "model-unreadable"


class ModelInvalid(ModelError):
    code = "model-invalid"


class ModelUnsupported(ModelError):
    code = "model-unsupported"


class ExternalDataRefused(ModelError):
    code = "external-data-refused"


class SourceUnreadable(MeshError):
    code = "source-unreadable"


class CalibrationError(MeshError):
    code = "calibration"


class TensorMismatch(MeshError):
    code = "tensor-mismatch"


class VerificationFailed(MeshError):
    code = "verification-failed"


class NotFound(MeshError):
    code = "not-found"
    exit_code = 3


class NoNodes(NotFound):
    code = "no-nodes"


class DeploymentNotFound(NotFound):
    code = "deployment-not-found"


class Timeout(MeshError):
    code = "timeout"
    exit_code = 4


class Infeasible(MeshError):
    code = "infeasible"
    exit_code = 5


class NodeLost(MeshError):
    code = "node-lost"
    address: str = ""
    """Of the node, "host:port", where whoever noticed knows it."""


class Refused(MeshError):
    code = "refused"


class StaleGeneration(Refused):
    code = "stale-generation"


class ProtocolViolation(Refused):
    code = "protocol-violation"


class Overloaded(Refused):
    code = "overloaded"


class StorageError(MeshError):
    code = "storage"


class StorageFull(StorageError):
    code = "storage-full"


class StorageReadOnly(StorageError):
    code = "storage-read-only"


class FolderInUse(StorageError):
    code = "folder-in-use"


class ListenError(MeshError):
    code = "listen"


class LabError(MeshError):
    code = "lab"


class EngineError(MeshError):
    code = "engine"


class LoadFailed(EngineError):
    code = "load-failed"


class RunFailed(EngineError):
    code = "run-failed"


class EngineDied(EngineError):
    code = "engine-died"


class EngineQuarantined(EngineError):
    code = "engine-quarantined"


def _subclasses(base: type[MeshError]) -> list[type[MeshError]]:
    found = [base]
    for child in base.__subclasses__():
        found.extend(_subclasses(child))
    return found


BY_CODE: dict[str, type[MeshError]] = {error.code: error for error in _subclasses(MeshError)}
"""Stable code to class; how an error that crossed the wire becomes itself again."""


def from_code(code: str, message: str, hint: str = "") -> MeshError:
    """Rebuild an error from its wire form; an unknown code becomes a plain `MeshError`."""
    return BY_CODE.get(code, MeshError)(message, hint=hint)
