"""Assembles the daemon, starts it and shuts it down."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from socket import socket
from typing import TYPE_CHECKING

import grpc.aio
import structlog
from prometheus_client import CollectorRegistry

from multigrain import __version__
from multigrain.events.records import JobState
from multigrain.jobs.job_request import JobKind
from multigrain.processes import python_command
from multigrain.specs.data_roots import PathRoots
from multigrain.v1.evaluation_pb2_grpc import add_EvaluationServiceServicer_to_server
from multigrain.v1.export_pb2_grpc import add_ExportServiceServicer_to_server
from multigrain.v1.training_pb2_grpc import add_TrainingServiceServicer_to_server
from multigrain_server.access.access import Access
from multigrain_server.address import ListenAddress
from multigrain_server.asyncio_utils import background_task
from multigrain_server.config import ServerConfig
from multigrain_server.data_dir import DataDir, DataDirError
from multigrain_server.database import open_index
from multigrain_server.devices import Inventory, Leases
from multigrain_server.engines.launch import launch
from multigrain_server.grpc.connections import ConnectionGuard
from multigrain_server.grpc.drain import InFlightCalls
from multigrain_server.grpc.embedding import EmbeddingServicer
from multigrain_server.grpc.health import Health
from multigrain_server.grpc.indexes import IndexServicer
from multigrain_server.grpc.inference import InferenceServicer, UnofferedCalls
from multigrain_server.grpc.interceptor import CallInterceptor
from multigrain_server.grpc.jobs import (
    EvaluationServicer,
    ExportServicer,
    JobServicer,
    TrainingServicer,
)
from multigrain_server.grpc.metadata_limit import limit_metadata
from multigrain_server.grpc.models import ModelServicer
from multigrain_server.grpc.server import build_server, enable_reflection
from multigrain_server.grpc.services import Services
from multigrain_server.grpc.tls import Certificates
from multigrain_server.grpc.unfinished_messages import UnfinishedMessages
from multigrain_server.indexes.process import IndexProcess
from multigrain_server.indexes.service import IndexService
from multigrain_server.jobs.inspector import Inspector
from multigrain_server.jobs.queue_limits import QueueLimits
from multigrain_server.jobs.recovery import Recovery
from multigrain_server.jobs.service import EventFeeds, Jobs
from multigrain_server.jobs.store import SCHEMA as JOB_SCHEMA
from multigrain_server.jobs.store import JobStore
from multigrain_server.jobs.submission import SubmissionChecks
from multigrain_server.jobs.supervisor import ActiveJob, Supervisor, SupervisorOptions
from multigrain_server.loop_lag import LoopLag
from multigrain_server.metrics.daemon import (
    register_certificate,
    register_process,
    register_tokens,
)
from multigrain_server.metrics.gpus import GpuMonitor, register_gpus
from multigrain_server.metrics.jobs import EventMetrics, JobCollector
from multigrain_server.metrics.requests import RequestMetrics
from multigrain_server.models.manager import ModelManager
from multigrain_server.models.metrics import ServingMetrics
from multigrain_server.serving.service import ImageService
from multigrain_server.status.snapshot import Sources
from multigrain_server.tracing.config import open_tracing

if TYPE_CHECKING:
    from multigrain_server.http.server import HttpServer

_log = structlog.get_logger(__name__)

RUNNER_COMMAND = python_command("multigrain.jobs.runner")
_CLOSED = (
    "the HTTP API is closed: callers of gRPC need a certificate (tls.client_ca), which only HTTPS "
    "can ask for; set tls.http"
)


class App:
    """One daemon on one data directory.

    Args:
        config: the daemon's configuration.
        runner_command: the command that starts a runner; the job folder is appended.

    Raises:
        DataDirError: if the data directory cannot be used, or another daemon uses it.
        TlsError, TokenFileError: if their files cannot be used.
    """

    def __init__(
        self, config: ServerConfig, runner_command: Sequence[str] = RUNNER_COMMAND
    ) -> None:
        self.config = config
        self.address = ""
        self.http_address = ""
        self.registry = CollectorRegistry()
        self._access = Access(config.access)
        self._certificates = Certificates(config.tls) if config.tls.enabled else None
        self._data = DataDir(config.data_dir)
        try:
            self._database = open_index(self._data.database, [JOB_SCHEMA])
        except sqlite3.Error as error:
            self._data.close()
            raise DataDirError(
                f"{self._data.database} cannot be opened ({error}): is the disk full or "
                f"read-only, or may uid {os.geteuid()} not write the file?"
            ) from error
        self.health = Health()
        self._calls = InFlightCalls()
        self._connections = ConnectionGuard(config.grpc, self.registry)
        self._gpus = GpuMonitor()
        self._gpu_watch: asyncio.Task[None] | None = None
        self._http: HttpServer | None = None
        self._started = time.monotonic()
        self._released = False
        self._events = EventMetrics(self.registry)
        self._store = JobStore(self._database)
        # The folders of the data directory may be links to other disks.
        self._roots = PathRoots((*config.roots, self._data.jobs, self._data.models))
        self._leases = Leases(Inventory.parse(config.devices))
        self._supervisor = Supervisor(
            self._store,
            self._leases,
            SupervisorOptions(
                command=runner_command,
                image_limits=replace(config.serving.image_limits, roots=self._roots.roots),
                sandbox=config.jobs.sandbox,
                compile_cache=config.jobs.compile_cache_dir or self._data.compile_cache,
                compile_cache_bytes=config.jobs.compile_cache_mib << 20,
                worker_environment=config.jobs.worker_environment,
                poll_seconds=config.jobs.poll_seconds,
                max_runner_crashes=config.jobs.max_runner_crashes,
                restart_delay_seconds=config.jobs.runner_restart_seconds,
            ),
            on_end=self._job_ended,
            on_event=self._events.read,
        )
        self.feeds = EventFeeds(self._data.jobs, self._supervisor, config.jobs.heartbeat_seconds)
        self.jobs = Jobs(
            self._data.jobs,
            self._data.models,
            self._store,
            self._supervisor,
            self._leases,
            self.feeds,
            QueueLimits(
                self._supervisor, config.jobs.max_queued, config.jobs.max_queued_per_client
            ),
            self._roots.roots,
        )
        metrics = ServingMetrics(self.registry)
        self.models = ModelManager(
            self._data.models,
            self._data.serving,
            config.serving,
            metrics,
            self.health.on_health,
            self.jobs.references,
            launch=partial(launch, folder=self._data.engines),
            leases=self._leases,
        )
        self.images = ImageService(self.models.catalog, config.serving, metrics)
        self._index_process = IndexProcess(self._data.indexes)
        self.indexes = IndexService(
            self._index_process,
            self.models.catalog,
            self.images,
            config.serving.max_images_per_request,
        )
        self._request_metrics = RequestMetrics(self.registry)
        self._tracing = open_tracing(config.tracing, __version__)
        self._services = Services(
            EmbeddingServicer(self.images, config.serving.stream_window),
            InferenceServicer(self.models, self.images, config.serving, lambda: self.health.ready),
            JobServicer(self.jobs, self._events, self.models.transfers),
            ModelServicer(self.models),
            IndexServicer(self.indexes),
        )
        self._server = self._build_server()
        self._loop_lag = LoopLag(self.registry)
        self._loop_watch: asyncio.Task[None] | None = None
        self._job_metrics = JobCollector(self._store, self._supervisor, self._leases, self.feeds)
        self.registry.register(self._job_metrics)
        register_process(self.registry, lambda: self._calls.in_flight)
        certificates = self._certificates
        expiry = certificates.expiry if certificates is not None else None
        register_certificate(self.registry, expiry)
        register_tokens(self.registry, self._access.tokens_stale_seconds)
        register_gpus(self.registry, lambda: self._gpus.readings)

    def _interceptor(self, connections: ConnectionGuard | None) -> CallInterceptor:
        return CallInterceptor(
            self._calls,
            self._request_metrics,
            self._access,
            self._tracing,
            connections,
            self.images.pacing,
            UnfinishedMessages(
                self.config.grpc.max_message_mib << 20, self._connections.known_received_bytes
            ),
        )

    def _build_server(self) -> grpc.aio.Server:
        interceptor = self._interceptor(self._connections)
        server = build_server(self.config.grpc, [interceptor])
        checks = SubmissionChecks(
            self._roots,
            self._leases,
            self._store,
            self._data.jobs,
            self.models.catalog.bundle_path,
            self.models.catalog.is_alias,
        )
        limits = replace(self.config.serving.image_limits, roots=self._roots.roots)
        inspector = Inspector(
            self._store, limits, self.config.jobs.sandbox, self.config.jobs.worker_environment
        )
        training = TrainingServicer(self.jobs, checks, inspector)
        add_TrainingServiceServicer_to_server(training, server)
        add_EvaluationServiceServicer_to_server(EvaluationServicer(self.jobs, checks), server)
        add_ExportServiceServicer_to_server(ExportServicer(self.jobs, checks), server)
        self._services.add_to(server)
        server.add_generic_rpc_handlers((UnofferedCalls(),))
        self.health.add_to(server)
        enable_reflection(server)
        return server

    def _job_ended(self, active: ActiveJob) -> None:
        self.feeds.keep(active.feed)
        succeeded = active.feed.view.state is JobState.SUCCEEDED
        if active.request.kind is JobKind.EXPORT and succeeded:
            self.models.publish()

    async def start(self) -> None:
        """Listens, recovers the jobs of an earlier daemon, and takes requests.

        The first log line has the addresses.

        Raises:
            OSError: if an address cannot be used.
        """
        wanted = ListenAddress.parse(self.config.listen)
        try:
            if self._certificates is None:
                port = self._server.add_insecure_port(str(wanted))
            else:
                credentials = self._certificates.credentials()
                port = self._server.add_secure_port(str(wanted), credentials)
        except RuntimeError as error:
            raise OSError(
                f"cannot listen on {wanted}: {wanted.problem() or 'is it in use?'}"
            ) from error
        self.address = str(wanted.with_port(port) if wanted.port == 0 else wanted)
        http_sockets = self._listen_http() if self.config.http_listen else []
        _log.info("listening", address=self.address, http=self.http_address or None)
        for warning in self.config.warnings:
            _log.warning(warning, address=self.address)
        self.health.start()
        Recovery(self._data.jobs, self._store, self._supervisor, self.feeds).run()
        self._supervisor.start()
        if self.config.serving.models:
            # Calls are answered meanwhile; only orchestrators wait for the models.
            await self.models.start(on_loaded=self.health.serve)
        else:
            await self.models.start()
            self.health.serve()
        await self._server.start()
        self._loop_watch = asyncio.create_task(self._loop_lag.watch(), name="loop-lag")
        self._connections.start(port)
        limit_metadata(self._connections.refuse_metadata)
        self._data.write_address(self.address)
        if http_sockets:
            # Last, and in a thread: importing aiohttp and Jinja2 takes 0.2 s of CPU time. Until
            # then, connections wait in the backlog.
            await asyncio.to_thread(import_module, "multigrain_server.http.server")
            self._http = self._build_http()
            await self._http.start(http_sockets)
            self._gpu_watch = background_task(self._gpus.watch(), name="gpus")

    def _listen_http(self) -> list[socket]:
        http = ListenAddress.parse(self.config.http_listen)
        try:
            sockets = http.bind()
            for sock in sockets:
                sock.listen()
        except OSError as error:
            raise OSError(f"cannot listen on {http}: {http.explain(error)}") from error
        self.http_address = str(http.with_port(sockets[0].getsockname()[1]))
        return sockets

    def _build_http(self) -> HttpServer:
        from multigrain_server.http.api import Api
        from multigrain_server.http.metrics_page import MetricsPage
        from multigrain_server.http.server import HttpServer
        from multigrain_server.shared_page import PageThread
        from multigrain_server.status.site import StatusSite

        sources = Sources(
            self._data.jobs,
            self.jobs,
            self._store,
            self._supervisor,
            self._leases,
            self.models.catalog,
            self.images.admission,
            self.config.serving.queue_items,
            self.health,
            self._request_metrics,
            self._gpus,
            lambda: self.address,
            self._started,
        )
        tls = self._certificates if self.config.tls.http else None
        thread = PageThread()
        site = StatusSite(sources, thread)
        return HttpServer(
            MetricsPage(self.registry, self._job_metrics.prepare, thread),
            lambda: self.health.ready,
            self._access,
            site,
            tls.context if tls is not None else None,
            self.config.access.hosts,
            api=Api(
                self._services,
                self._interceptor(None),
                self.images.pacing,
                self.config.grpc.max_message_mib << 20,
                _CLOSED if self.config.tls.client_ca is not None and tls is None else "",
            ),
        )

    async def stop(self) -> None:
        """Drains and releases everything. Running jobs continue without the daemon.

        The process should exit right after this, which closes its connections; until then calls
        are refused with UNAVAILABLE.
        """
        shutdown = self.config.shutdown
        _log.info("stopping", calls_in_flight=self._calls.in_flight)
        self.health.drain()
        await asyncio.sleep(shutdown.keep_serving_seconds)
        self.feeds.close()
        if not await self._calls.drain(shutdown.drain_seconds):
            _log.warning("drain timeout, aborting calls", calls_in_flight=self._calls.in_flight)
        await self._calls.linger()
        self.images.admission.drain()
        await self.models.close(0.0 if self._calls.in_flight else shutdown.drain_seconds)
        await self._release()
        _log.info("stopped")

    async def abandon(self) -> None:
        """Closes all connections and releases everything, without draining."""
        await self.close_connections()
        await self._release()

    async def close_connections(self) -> None:
        """Closes every gRPC connection, for a process that does not exit after ``stop``."""
        await self._server.stop(grace=None)

    async def _release(self) -> None:
        if self._released:  # a second signal came at the very end
            return
        for watch in (self._gpu_watch, self._loop_watch):
            if watch is not None:
                watch.cancel()
        if self._tracing is not None:
            # In a thread, as it waits for the collector.
            await asyncio.to_thread(self._tracing.close)
        await self._supervisor.stop()
        await self._index_process.close()
        if self._http is not None:
            await self._http.stop()
        self._database.close()
        self._data.close()
        self._connections.stop()
        self._released = True
