"""What must hold between the settings of the GSRM's server and of the trainer that asks it."""

from __future__ import annotations

from collections.abc import Iterator

from rlkd_nemo.config.schema import Config


def problems(cfg: Config) -> Iterator[str]:
    """Every broken rule of `gsrm.service` and `gsrm.server` as one sentence with its key."""
    gsrm, service, server = cfg.gsrm, cfg.gsrm.service, cfg.gsrm.server
    llm = [role for role in ("decomposer", "judge") if getattr(gsrm, role) == "llm"]
    if gsrm.scorer == "embedded" and llm:
        yield (
            f"gsrm.{llm[0]}=llm needs a server, but gsrm.scorer=embedded; wanted scorer=service and examples/serve_gsrm.py, "
            f"or a rule as {llm[0]}"
        )
    if server.port > 65535:
        yield f"gsrm.server.port={server.port} is out of range; wanted 0 (any free one) to 65535"
    if server.items_per_request > server.concurrency + server.queue_items:
        yield (
            f"gsrm.server.items_per_request={server.items_per_request} would never fit into gsrm.server.concurrency + "
            f"queue_items = {server.concurrency + server.queue_items}; lower the first or raise the queue"
        )
    if gsrm.scorer != "service":
        return
    if not service.urls:
        yield "gsrm.service.urls=[] but gsrm.scorer=service; wanted at least one address such as http://host:8700"
    for url in service.urls:
        if not url.startswith(("http://", "https://")):
            yield f"gsrm.service.urls has {url!r}; wanted an address that starts with http:// or https://"
    if len(set(service.urls)) < len(service.urls):
        yield f"gsrm.service.urls={service.urls} names an address twice; wanted each once"
