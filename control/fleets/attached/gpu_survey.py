"""One look at the dcgm-exporters of a fleet before it is attached: what they measure, and what turns on the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import httpx

from control.fleets.attached.exposition import PageError
from control.fleets.attached.gpu_page import Gpu, GpuPage
from control.fleets.attached.gpu_watch import look_at
from control.fleets.attached.types import EngineSurvey, ExporterSurvey


async def survey_gpus(
    urls: Sequence[str], client: httpx.AsyncClient, gate: asyncio.Semaphore
) -> tuple[tuple[ExporterSurvey, ...], tuple[Gpu, ...]]:
    """Each exporter, and all GPUs that they have."""
    found = await asyncio.gather(*(_look(url, client, gate) for url in urls))
    return tuple(each for each, _ in found), tuple(gpu for _, page in found if page for gpu in page.gpus)


def gpu_notes(urls: Sequence[str], engines: Sequence[EngineSurvey]) -> tuple[str, ...]:
    """Workers of which nothing will be measured."""
    without = [each.worker_id for each in engines if not each.gpus]
    if not urls or not without:
        return ()
    return (f"nothing is measured of {', '.join(without)}: say which GPUs are theirs, --gpus WORKER=HOST/INDEX",)


async def _look(url: str, client: httpx.AsyncClient, gate: asyncio.Semaphore) -> tuple[ExporterSurvey, GpuPage | None]:
    async with gate:
        try:
            page = await look_at(client, url)
        except PageError as error:
            return ExporterSurvey(url=url, problem=error.detail), None
    found = ExporterSurvey(
        url=url,
        num_gpus=len(page.gpus),
        num_found=sum(1 for each in page.findings if each.state == "found"),
        missing=tuple(each for each in page.findings if each.state != "found"),
    )
    return found, page
