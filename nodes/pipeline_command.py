"""`mesh pipeline`: sensors on MQTT, judged by deployed models, as a file describes it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.core.ids import make_name
from mesh.errors import MeshError, MissingExtra, NotFound, UsageError
from nodes.options import CoordinatorOption, InterfaceOption, JsonOption, MdnsOption, PeerOption, open_mesh
from nodes.output import command, print_json, run_async, say

if TYPE_CHECKING:
    from mesh.client.mesh_client import Mesh
    from mesh.gateways.mqtt_connection import Broker
    from mesh.pipelines.pipeline_file import MqttSettings, PipelineFile

pipeline_app = typer.Typer(
    name="pipeline",
    help="Judge what sensors publish on MQTT with deployed models, as a pipeline file describes it.",
    no_args_is_help=True,
)

FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="A pipeline file (TOML); see docs/pipelines.md.", show_default=False)
]


@pipeline_app.command("check")
@command
def check(
    file: FileArgument,
    offline: Annotated[bool, typer.Option("--offline", help="Read the file only: ask no mesh for the models.")] = False,
    peer: PeerOption = None,
    interface: InterfaceOption = None,
    mdns: MdnsOption = True,
    coordinator: CoordinatorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check FILE, and whether its pipelines fit the models that are deployed."""
    described = read_pipelines(file)
    opened = None if offline else open_mesh(coordinator, peer, interface, mdns)
    run_async(_check(opened, described, as_json))


@pipeline_app.command("run")
@command
def run(
    file: FileArgument,
    embedded: Annotated[
        bool, typer.Option("--broker", help="Also be the MQTT broker that FILE names, to try pipelines out.")
    ] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="With --broker: take sensors from beyond this machine, in plaintext.")
    ] = False,
    peer: PeerOption = None,
    interface: InterfaceOption = None,
    mdns: MdnsOption = True,
    coordinator: CoordinatorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve the pipelines of FILE to the MQTT broker that it names, in the foreground."""
    from mesh.hardware.allocator import keep_freed_memory

    described = read_pipelines(file)
    if described.mqtt is None:
        raise UsageError(f"{file} has no [mqtt] table", hint='write [mqtt] and host = "..."')
    broker = make_broker(described.mqtt, file)
    if embedded:
        check_embedded(described.mqtt, insecure)
    elif insecure:
        raise UsageError("--insecure is about a broker in this process", hint="add --broker, or leave it out")
    opened = open_mesh(coordinator, peer, interface, mdns)
    keep_freed_memory()
    asyncio.run(_serve(opened, described, described.mqtt, broker, embedded, as_json))


def read_pipelines(file: Path) -> PipelineFile:
    """Raises `NotFound` or `UsageError`, which names the file."""
    try:
        from mesh.pipelines.pipeline_file import parse_pipelines
    except ImportError as error:
        raise _missing(error) from None
    try:
        return parse_pipelines(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"there is no pipeline file {file}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from None
    except UsageError as error:
        raise UsageError(f"{file}: {error.message}", hint=error.hint) from None


def check_embedded(settings: MqttSettings, insecure: bool) -> None:
    """Raises `UsageError` for what a broker in this process is not, and `MissingExtra` where there is none."""
    from nodes.daemon import check_listen

    try:
        import mesh.gateways.embedded_broker  # noqa: F401 - to know before anything is started
    except ImportError as error:
        raise MissingExtra(
            f"a broker in this process needs the package {error.name!r}, which is not installed here",
            hint="install the extra infermesh[broker]: pip install '.[broker]' in a clone; or run a broker beside it",
        ) from None
    if settings.version == "5":
        raise UsageError("the broker of --broker speaks MQTT 3.1.1 only", hint='set version = "3.1.1" in [mqtt]')
    if settings.username or settings.password_file:
        raise UsageError("the broker of --broker knows no passwords", hint="leave user and password out of [mqtt]")
    check_listen(f"{settings.host}:{settings.port}", settings.port, insecure)


def make_broker(settings: MqttSettings, file: Path) -> Broker:
    """With the password from its file, relative to the pipeline file."""
    from mesh.gateways.mqtt_connection import Broker

    password = ""
    if settings.password_file:
        path = file.parent / settings.password_file
        try:
            password = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the password file {path} cannot be read: {error}") from None
    client_id = settings.client_id or f"infermesh-{make_name(socket.gethostname(), 'host')}-{settings.prefix}"
    return Broker(settings.host, settings.port, settings.version == "5", client_id, settings.username, password)


async def _check(opened: Mesh | None, described: PipelineFile, as_json: bool) -> None:
    from mesh.gateways.inference import InferenceGateway
    from mesh.gateways.repository import ModelRepository
    from mesh.pipelines.runner import PipelineRunner

    documents: list[dict[str, object]] = []
    failure: MeshError | None = None
    async with contextlib.AsyncExitStack() as stack:
        mesh = None if opened is None else await stack.enter_async_context(opened)
        for pipeline in described.pipelines:
            told: dict[str, object] = {"name": pipeline.name, "model": pipeline.model, "ok": True, "said": ""}
            if mesh is not None:
                gateway = InferenceGateway(mesh, ModelRepository(None, False))
                try:
                    deployment = await PipelineRunner(pipeline, gateway).check()
                    told["said"] = f"takes {deployment.inputs[0]}"
                except MeshError as error:
                    failure = failure or error
                    told |= {"ok": False, "said": str(error)}
            documents.append(told)
    if as_json:
        print_json({"pipelines": documents})
    else:
        for told in documents:
            print(f"{told['name']}: {'ok' if told['ok'] else 'WRONG'}{', ' if told['said'] else ''}{told['said']}")
    if failure is not None and not as_json:
        raise failure
    if failure is not None:
        raise typer.Exit(failure.exit_code)


async def _serve(
    opened: Mesh,
    described: PipelineFile,
    settings: MqttSettings,
    broker: Broker,
    embedded: bool,
    as_json: bool,
) -> None:
    """Until SIGTERM or SIGINT."""
    from mesh.gateways.inference import InferenceGateway
    from mesh.gateways.mqtt_gateway import MqttGateway, Served
    from mesh.gateways.mqtt_topics import Topics
    from mesh.gateways.repository import ModelRepository
    from mesh.pipelines.runner import PipelineRunner, write_result
    from mesh.runtime.service_manager import ServiceManager
    from nodes.daemon import stop_on_signals

    service_manager = ServiceManager.from_environment()
    stop = stop_on_signals()
    async with contextlib.AsyncExitStack() as stack:
        if embedded:
            from mesh.gateways.embedded_broker import serving_broker

            where = f"{broker.host}:{broker.port}"
            await stack.enter_async_context(serving_broker(where))
            say(f"an MQTT broker for trials serves on {where}; it forgets everything when this ends")
        mesh = await stack.enter_async_context(opened)
        meaning = InferenceGateway(mesh, ModelRepository(None, False))

        def serve(runner: PipelineRunner) -> Served:
            async def process(
                source: str, payload: bytes, identifier: str, traceparent: str
            ) -> list[bytes | MeshError]:
                results = await runner.process(source, payload, identifier, traceparent)
                return [result if isinstance(result, MeshError) else write_result(result) for result in results]

            return Served(process, runner.pipeline.output.kind, runner.holds)

        served = {pipeline.name: serve(PipelineRunner(pipeline, meaning)) for pipeline in described.pipelines}
        gateway = MqttGateway(broker, Topics(settings.prefix), served, mesh.tasks, say, settings.home_assistant)
        working = mesh.tasks.spawn(gateway.run(), "MQTT gateway")
        service_manager.ready(mesh.tasks, f"serves {len(served)} pipelines")
        await stop.wait()
        service_manager.stopping()
        working.cancel()
        await asyncio.wait({working})
    if as_json:
        print_json(dict(sorted(gateway.counted.items())))


def _missing(error: ImportError) -> MissingExtra:
    return MissingExtra(
        f"pipelines need the package {error.name!r}, which is not installed here",
        hint="install the extras infermesh[gateway,images]: pip install '.[gateway,images]' in a clone",
    )
