"""What the dashboards show: every panel with its question, its unit and its queries. scripts/dashboards.py makes dashboards/*.json of it.

A rate is over `$__rate_interval`, which Grafana fits to the scrape interval. Where an event that has not happened yet has no series, the
query says zero instead (`or vector(0)`): an empty panel then means that nothing is measured.
"""

from __future__ import annotations

import dataclasses

# Selectors of the variables of a dashboard.
OP = 'op=~"$op"'
WORKER = 'job="trefoil-worker", instance=~"$instance"'
NODE = 'job="trefoil-node", node=~"$node"'
ALL = 'job=~"trefoil-(worker|node)"'


@dataclasses.dataclass
class Panel:
    """One panel. Queries are pairs of an expression and its legend; width is in 24ths of the dashboard."""

    title: str
    description: str
    unit: str
    queries: list[tuple[str, str]]
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    stack: bool = False
    # Values from which on the panel is orange and red; of a stat, from the worse on if red is the lower one.
    limits: tuple[float, float] | None = None


@dataclasses.dataclass
class Row:
    """A headline and what is below it, laid out from left to right."""

    title: str
    panels: list[Panel]


@dataclasses.dataclass
class Dashboard:
    """A dashboard; variables are pairs of a name and the query of its values."""

    uid: str
    title: str
    description: str
    variables: list[tuple[str, str]]
    rows: list[Row]


def rate(selector: str) -> str:
    """Events a second."""
    return f"rate({selector}[$__rate_interval])"


def zero(labels: str, selector: str) -> str:
    """Events a second by labels; zero where there is no such series."""
    return f"{by(labels, rate(selector))} or on () vector(0)"


def total(selector: str) -> str:
    """Events a second, all together."""
    return f"sum({rate(selector)})"


def by(labels: str, expression: str) -> str:
    """The sum over everything but these labels."""
    return f"sum by ({labels}) ({expression})"


def quantiles(histogram: str, selector: str, labels: str = "", legend: str = "", of: tuple[int, ...] = (50, 95, 99)) -> list[tuple[str, str]]:
    """Percentiles of a histogram, by labels."""
    buckets = rate(f"{histogram}_bucket{{{selector}}}" if selector else f"{histogram}_bucket")
    return [
        (f"histogram_quantile(0.{q:02d}, {by(f'{labels}, le' if labels else 'le', buckets)})", f"{legend} p{q}".strip()) for q in of
    ]


def mean(histogram: str, legend: str) -> tuple[str, str]:
    """Time spent in a step, for each job that ended: seconds a job."""
    return (f"{total(f'{histogram}_sum')} / {total('trefoil_jobs_total')}", legend)


def stat(title: str, description: str, unit: str, expression: str, limits: tuple[float, float] | None = None, width: int = 4) -> Panel:
    """One number."""
    return Panel(title, description, unit, [(expression, "")], "stat", width, 4, limits=limits)


OVERVIEW = Dashboard(
    "trefoil-overview", "Trefoil / Overview", "Requests, errors and durations of every operation, and whether everything runs.",
    [("op", "label_values(trefoil_jobs_total, op)")],
    [
        Row("State", [
            stat("Alerts", "Alerts that fire now; docs/runbook.md has an entry for each.", "none",
                 'count(ALERTS{alertname=~"Trefoil.+", alertstate="firing"}) or vector(0)', (1, 1)),
            stat("Nodes that answer", "Of two. Without node 1 nothing is signed.", "none", 'sum(up{job="trefoil-node"})', (2, 1)),
            stat("Workers that answer", "As many as the load needs; none is an outage.", "none", "trefoil:workers_up", (2, 1)),
            stat("Processes connected to NATS", "Workers and nodes that have a connection to NATS.", "none", "sum(trefoil_nats_connected)"),
            stat("Jobs a second", "Results stored, good and bad ones.", "ops", total("trefoil_jobs_total")),
            stat("Oldest interactive job", "How long the oldest job of the lane interactive has been in the queue.", "s",
                 'max(trefoil_queue_oldest_seconds{lane="interactive"})', (10, 60)),
        ]),
        Row("Requests", [
            Panel("Jobs by operation", "Jobs whose result was stored, by operation.", "ops",
                  [(by("op", rate(f"trefoil_jobs_total{{{OP}}}")), "{{op}}")], stack=True),
            Panel("Jobs by curve and method", "The same jobs by curve and signing method; none where the operation has none.", "ops",
                  [(by("curve, method", rate(f"trefoil_jobs_total{{{OP}}}")), "{{curve}} {{method}}")], stack=True),
            Panel("Jobs in flight", "Jobs being worked on, and jobs in a worker's hand that wait for their key.", "none",
                  [(by("op", f"trefoil_jobs_in_flight{{{OP}}}"), "{{op}}"), ("sum(trefoil_jobs_waiting)", "wait for their key")]),
        ]),
        Row("Errors", [
            Panel("Errors by code", "Results that are an error, by code. docs/wire.md, section 14, says what each means for the caller.", "ops",
                  [(by("code", rate(f'trefoil_jobs_total{{{OP}, outcome="error"}}')), "{{code}}")], stack=True),
            Panel("Errors that are not the callers'",
                  "Part of the jobs that failed for a reason of the service's own, and for want of a node or of capacity. "
                  "TrefoilErrorRatio looks at this.",
                  "percentunit",
                  [(f"trefoil:jobs_faulty:rate5m{{{OP}}} / trefoil:jobs:rate5m or trefoil:jobs:rate5m{{{OP}}} * 0", "{{op}}, fault"),
                   (f"trefoil:jobs_unserved:rate5m{{{OP}}} / trefoil:jobs:rate5m or trefoil:jobs:rate5m{{{OP}}} * 0", "{{op}}, not served")],
                  limits=(0.01, 0.05)),
            Panel("Retries by code", "Jobs that were given back to the queue for a while, and why. A few KEY_BUSY are normal where one key has many jobs.", "ops",
                  [(zero("op, code", f"trefoil_job_retries_total{{{OP}}}"), "{{op}} {{code}}")]),
        ]),
        Row("Durations", [
            Panel("Time of a job, by operation", "From taken by a worker to result stored, jobs that succeeded.", "s",
                  quantiles("trefoil_job_duration_seconds", f'{OP}, outcome="ok"', "op", "{{op}}", (50, 99))),
            Panel("Wait in the queue", "From published to taken by a worker, first deliveries.", "s",
                  quantiles("trefoil_job_queue_wait_seconds", OP, "lane", "{{lane}}", (50, 99))),
            Panel("Where a job's time goes",
                  "Seconds of each step for each job that ended, of all operations together; steps that run side by side are all "
                  "counted.", "s",
                  [mean("trefoil_job_queue_wait_seconds", "queue"), mean("trefoil_lock_wait_seconds", "wait for the key"),
                   mean("trefoil_kdf_duration_seconds", "key derivation"), mean("trefoil_round_duration_seconds", "calls to the nodes"),
                   mean("trefoil_publish_duration_seconds", "storing the result")], stack=True),
            Panel("Distribution of the time of a job", "All operations that are chosen, good results.", "s",
                  [(by("le", rate(f'trefoil_job_duration_seconds_bucket{{{OP}, outcome="ok"}}')), "{{le}}")], "heatmap", 24, 9),
        ]),
    ],
)

WORKERS = Dashboard(
    "trefoil-workers", "Trefoil / Workers", "Utilisation, saturation and errors of the workers.",
    [("instance", 'label_values(up{job="trefoil-worker"}, instance)')],
    [
        Row("Utilisation", [
            Panel("Slots in use", "Jobs being worked on, of those that may be (`concurrency`).", "percentunit",
                  [(f"sum by (instance) (trefoil_jobs_in_flight{{{WORKER}}}) / sum by (instance) (trefoil_job_slots{{{WORKER}}})", "{{instance}}")],
                  limits=(0.8, 0.95)),
            Panel("Processor", "Cores in use.", "none", [(by("instance", rate(f"process_cpu_seconds_total{{{WORKER}}}")), "{{instance}}")]),
            Panel("Memory", "Resident memory. Key derivations take up to `kdf_memory_kib` of it.", "bytes",
                  [(by("instance", f"process_resident_memory_bytes{{{WORKER}}}"), "{{instance}}")]),
            Panel("Jobs by worker", "An even share for each is the rule: no worker twice another's.", "ops",
                  [(by("instance", rate(f"trefoil_jobs_total{{{WORKER}}}")), "{{instance}}")], stack=True),
            Panel("Open files", "Of those that the process may have open.", "percentunit",
                  [(f"sum by (instance) (process_open_fds{{{WORKER}}}) / sum by (instance) (process_max_fds{{{WORKER}}})", "{{instance}}")],
                  limits=(0.6, 0.8)),
            Panel("Started", "When each worker was started. TrefoilRestarting looks at this.", "dateTimeAsIso",
                  [(f"process_start_time_seconds{{{WORKER}}} * 1000", "{{instance}}")], "table"),
        ]),
        Row("Saturation", [
            Panel("Jobs that wait for their key", "In a worker's hand; beyond `waiting` they go back to the queue for a while.", "none",
                  [(by("instance", f"trefoil_jobs_waiting{{{WORKER}}}"), "{{instance}}")]),
            Panel("Wait for the key", "In the worker and across workers. Long waits are callers that send many jobs for one key at a time.", "s",
                  quantiles("trefoil_lock_wait_seconds", WORKER, "op", "{{op}}", (50, 99))),
            Panel("Key derivation", "One key derivation with its wait for memory.", "s", quantiles("trefoil_kdf_duration_seconds", WORKER)),
            Panel("Contention for keys", "Jobs that waited for one of the same worker, and attempts at leases that another worker held.", "ops",
                  [(total(f"trefoil_mutex_contended_total{{{WORKER}}}"), "in the worker"),
                   (total(f"trefoil_lease_contended_total{{{WORKER}}}"), "across workers")]),
            Panel("Calls to the nodes", "One call and its answer, 99th percentile, by round and node.", "s",
                  quantiles("trefoil_round_duration_seconds", WORKER, "round, node", "{{node}} {{round}}", (99,))),
            Panel("Storing a result", "One result, acknowledged by JetStream.", "s", quantiles("trefoil_publish_duration_seconds", WORKER)),
        ]),
        Row("Errors", [
            Panel("Retries and redeliveries",
                  "Attempts that were put off, and jobs that another worker, or this one, had before: a worker died, or was too "
                  "slow to say that it lives.", "ops",
                  [(f"{total(f'trefoil_job_retries_total{{{WORKER}}}')} or on () vector(0)", "retries"),
                   (f"{total(f'trefoil_job_redeliveries_total{{{WORKER}}}')} or on () vector(0)", "redeliveries")]),
            Panel("Leases lost and taken over", "Taken from a worker that was gone, or from this one because it did not renew them in time.", "ops",
                  [(total(f"trefoil_lease_lost_total{{{WORKER}}}"), "lost"), (total(f"trefoil_lease_takeovers_total{{{WORKER}}}"), "taken over")]),
            Panel("Nodes as the workers see them", "1 if the last call to the node was answered.", "none",
                  [(f"min by (node) (trefoil_node_up{{{WORKER}}})", "{{node}}")]),
        ]),
    ],
)

NODES = Dashboard(
    "trefoil-nodes", "Trefoil / Nodes", "What the nodes are asked, how long they take, and how their disks do.",
    [("node", 'label_values(up{job="trefoil-node"}, node)')],
    [
        Row("Requests", [
            Panel("Requests by round", "Authentic requests that were answered.", "ops",
                  [(by("node, round", rate(f"trefoil_node_requests_total{{{NODE}}}")), "{{node}} {{round}}")], stack=True),
            Panel("Refusals by code", "Requests that were answered with a refusal.", "ops",
                  [(zero("node, code", f'trefoil_node_requests_total{{{NODE}, outcome!="ok"}}'), "{{node}} {{code}}")]),
            Panel("Time of a request", "99th percentile by round.", "s",
                  quantiles("trefoil_node_request_duration_seconds", NODE, "node, round", "{{node}} {{round}}", (99,))),
            Panel("Requests in flight", "Being answered, and protocol steps that wait for a thread (`crypto_threads`).", "none",
                  [(by("node", f"trefoil_node_requests_in_flight{{{NODE}}}"), "{{node}}"),
                   (by("node", f"trefoil_crypto_queue{{{NODE}}}"), "{{node}}, waiting for a thread")]),
            Panel("Sessions and channels", "Protocol sessions in memory, and channels of workers.", "none",
                  [(by("node", f"trefoil_sessions_open{{{NODE}}}"), "{{node}} sessions"),
                   (by("node", f"trefoil_channels_open{{{NODE}}}"), "{{node}} channels")]),
            Panel("Sessions that ended", "By outcome. Forgotten ones belonged to workers that died.", "ops",
                  [(by("node, outcome", rate(f"trefoil_sessions_total{{{NODE}}}")), "{{node}} {{outcome}}")], stack=True),
        ]),
        Row("Keys", [
            Panel("Live keys", "By curve.", "none", [(by("node, curve", f"trefoil_keys{{{NODE}}}"), "{{node}} {{curve}}")]),
            Panel("Signature shares released", "By curve; each is burned and logged before it leaves.", "ops",
                  [(by("node, curve", rate(f"trefoil_partial_signatures_total{{{NODE}}}")), "{{node}} {{curve}}")]),
            Panel("Keys in doubt", "Since a restore, not confirmed by the other node.", "none",
                  [(by("node", f"trefoil_quarantine_keys{{{NODE}}}"), "{{node}}")]),
        ]),
        Row("Disk", [
            Panel("Commit of the store", "One durable commit.", "s",
                  quantiles("trefoil_store_commit_duration_seconds", NODE, "node", "{{node}}", (50, 99))),
            Panel("Write of the audit log", "One durable write, for all entries of it.", "s",
                  quantiles("trefoil_audit_append_duration_seconds", NODE, "node", "{{node}}", (50, 99))),
            Panel("Audit entries", "A second.", "ops", [(by("node", rate(f"trefoil_audit_entries_total{{{NODE}}}")), "{{node}}")]),
            Panel("Failures", "Of store and audit log. After one of the audit log the node serves no more.", "ops",
                  [(by("node", rate(f"trefoil_store_failures_total{{{NODE}}}")), "{{node}} store"),
                   (by("node", rate(f"trefoil_audit_failures_total{{{NODE}}}")), "{{node}} audit log"),
                   (by("node", rate(f"trefoil_audit_lost_total{{{NODE}}}")), "{{node}} audit log without room"),
                   (by("node", rate(f"trefoil_backup_failures_total{{{NODE}}}")), "{{node}} backup")]),
            Panel("Age of the newest backup", "Where backups are configured. TrefoilBackupOld fires after 26 hours.", "s",
                  [(f"time() - max by (node) (trefoil_backup_timestamp_seconds{{{NODE}}})", "{{node}}")], limits=(90_000, 93_600)),
        ]),
        Row("Process", [
            Panel("Processor", "Cores in use.", "none", [(by("node", rate(f"process_cpu_seconds_total{{{NODE}}}")), "{{node}}")]),
            Panel("Memory", "Resident memory.", "bytes", [(by("node", f"process_resident_memory_bytes{{{NODE}}}"), "{{node}}")]),
            Panel("Builds", "Nodes and workers of different builds refuse each other by name.", "none",
                  [(f"count by (job, version) (trefoil_build_info{{{ALL}}})", "")], "table"),
        ]),
    ],
)

NATS = Dashboard(
    "trefoil-nats", "Trefoil / NATS and queues",
    "Connections, the job queues, leases and the stream of results; at the end what nats-server says of itself.",
    [],
    [
        Row("Connections", [
            Panel("Connected", "1 while the process is connected.", "none", [("trefoil_nats_connected", "{{job}} {{instance}}")]),
            Panel("Connections lost", "In the last five minutes, by process.", "none",
                  [("increase(trefoil_nats_disconnects_total[5m])", "{{job}} {{instance}}")]),
            Panel("Storing a result",
                  "One result, acknowledged by JetStream: how NATS does, as the workers see it.", "s",
                  quantiles("trefoil_publish_duration_seconds", "")),
        ]),
        Row("Queues", [
            Panel("Jobs in the queue", "By lane: all, and those that no worker ever had. Jobs that were given back for a while are among the first only.", "none",
                  [("max by (lane) (trefoil_queue_jobs)", "{{lane}}"),
                   ("max by (lane) (trefoil_queue_pending_jobs)", "{{lane}}, never delivered")]),
            Panel("Age of the oldest job", "By lane. TrefoilQueueOld fires at a minute for interactive jobs, at an hour for bulk ones.", "s",
                  [("max by (lane) (trefoil_queue_oldest_seconds)", "{{lane}}")], limits=(30, 60)),
            Panel("Wait in the queue", "From published to taken, first deliveries.", "s",
                  quantiles("trefoil_job_queue_wait_seconds", "", "lane", "{{lane}}", (50, 99))),
            Panel("Redeliveries", "Jobs that were delivered before.", "ops", [(zero("op", "trefoil_job_redeliveries_total"), "{{op}}")]),
        ]),
        Row("Leases and results", [
            Panel("Leases", "Attempts at leases that another worker held, leases taken over, leases lost.", "ops",
                  [(total("trefoil_lease_contended_total"), "contended"), (total("trefoil_lease_takeovers_total"), "taken over"),
                   (total("trefoil_lease_lost_total"), "lost")]),
            Panel("Results kept", "Messages in the stream of results; they leave it by age.", "none", [("max(trefoil_results_kept)", "results")]),
            Panel("Readers of results",
                  "Consumers of the stream of results: one for each backend that waits. TrefoilResultsNotConsumed fires where "
                  "there are none.", "none",
                  [("max(trefoil_result_readers)", "consumers")]),
        ]),
        Row("nats-server (prometheus-nats-exporter)", [
            Panel("Messages", "In and out.", "ops",
                  [("rate(gnatsd_varz_in_msgs[$__rate_interval])", "in"), ("rate(gnatsd_varz_out_msgs[$__rate_interval])", "out")]),
            Panel("Memory of nats-server", "Resident memory.", "bytes", [("gnatsd_varz_mem", "{{server_id}}")]),
            Panel("Bytes by stream", "Of each JetStream stream: streams have a limit of messages and none of bytes.", "bytes",
                  [("max by (stream_name) (jetstream_stream_total_bytes)", "{{stream_name}}")]),
        ]),
    ],
)

SECURITY = Dashboard(
    "trefoil-security", "Trefoil / Security", "Locks, refusals, attempts at passwords, replays: what an attack would show in.",
    [],
    [
        Row("Keys", [
            stat("Keys locked in 24 hours",
                 "At the nodes. A party deviated from the protocol: an incident each.", "none",
                 'sum(increase(trefoil_key_locks_total{job="trefoil-node"}[24h]))', (1, 1), 6),
            stat("Keys in doubt", "Since a restore, not confirmed by the other node.", "none", "sum(trefoil_quarantine_keys)", (1, 100), 6),
            stat("Failed audit writes", "After one of them a node serves no more.", "none", "sum(trefoil_audit_failures_total)", (1, 1), 6),
            stat("Replays in 24 hours", "Requests refused because their job's id was used before.", "none",
                 "sum(increase(trefoil_replays_total[24h]))", (20, 1000), 6),
            Panel("Locks", "Where and because of whom; `node` of a worker's count is the node that was caught.", "none",
                  [(f"{by('job, node', 'increase(trefoil_key_locks_total[$__rate_interval])')} or on () vector(0)", "{{job}} {{node}}")]),
            Panel("Signatures: released and stored",
                  "Shares that left node 1, batches by item, against sign jobs with a good result. More released than stored, "
                  "over a long time, without batches: somebody collects them.", "ops",
                  [(total("trefoil_partial_signatures_total"), "released by node 1"),
                   (total('trefoil_jobs_total{op="sign", outcome="ok"}'), "sign jobs, ok")]),
            Panel("Audit entries", "Decisions that were written down.", "ops", [(by("node", rate("trefoil_audit_entries_total")), "{{node}}")]),
        ]),
        Row("Passwords", [
            Panel("Attempts", "By outcome: right, wrong, unknown (nobody reported the end), refused (the limit).", "ops",
                  [(by("outcome", rate("trefoil_password_attempts_total")), "{{outcome}}")], stack=True),
            Panel("Wrong and refused, part of all", "TrefoilPasswordGuessing fires at a fifth, from 50 in 15 minutes on.", "percentunit",
                  [('sum(increase(trefoil_password_attempts_total{outcome=~"wrong|refused"}[15m]))'
                    " / sum(increase(trefoil_password_attempts_total[15m]))", "of 15 minutes")], limits=(0.1, 0.2)),
            Panel("Jobs with wrong secrets", "Passwords and shares that do not open, as the results say.", "ops",
                  [(zero("code", 'trefoil_jobs_total{code=~"WRONG_PASSWORD|TOO_MANY_ATTEMPTS|CORRUPT_.+|SHARE_MISMATCH|STALE_SHARE"}'), "{{code}}")]),
        ]),
        Row("Refusals", [
            Panel("Strangers",
                  "Jobs of initiators that the workers do not know, and what got no result: no job, not signed, altered, an id used twice.", "ops",
                  [(zero("code", 'trefoil_jobs_total{code="UNKNOWN_INITIATOR"}'), "{{code}}"),
                   (zero("code", "trefoil_jobs_refused_total"), "{{code}}")]),
            Panel("Refusals by a node",
                  "By code. Nodes check everything themselves: NOT_PERMITTED and BAD_SIGNATURE here, and not at the workers, are "
                  "a worker that forwards what it should not.", "ops",
                  [(zero("node, code", 'trefoil_node_requests_total{outcome!="ok"}'), "{{node}} {{code}}")]),
            Panel("Messages that are no request",
                  "Forged, replayed, or of a channel that the node does not know; a few of the last kind follow each restart.", "ops",
                  [(zero("node, outcome", "trefoil_node_rejects_total"), "{{node}} {{outcome}}")]),
            Panel("Replays", "Requests refused because their job's id was used before.", "ops", [(by("node", rate("trefoil_replays_total")), "{{node}}")]),
            Panel("Clock offset", "A node's clock minus a worker's, at the last handshake. TrefoilClockSkew fires at 5 seconds.", "s",
                  [("trefoil_clock_offset_seconds", "{{node}} - {{instance}}")], limits=(1, 5)),
            Panel("Certificates", "Time until the first TLS certificate of a process ends. TrefoilCertificateExpiry fires 14 days before.", "s",
                  [("min by (job, instance) (trefoil_certificate_expiry_timestamp_seconds) - time()", "{{job}} {{instance}}")]),
        ]),
    ],
)

DASHBOARDS = [OVERVIEW, WORKERS, NODES, NATS, SECURITY]
