//! Metrics of many pools, for a scraper: valid, and labelled by pool.
//!
//! What php-fpm counts is there twice: under the name that dashboards of php-fpm know, which lacks the `_total` that a counter
//! must have (so it is declared a gauge), and as a counter of ours.

use std::borrow::Cow;
use std::fmt::Result;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::{Resources, Snapshot};
use crate::api::{Measures, PoolStatus, State};
use crate::scoreboard::{Histogram, SIZES, Stage, TIMES};

/// A pool's part of the exposition.
#[derive(Clone, Debug)]
pub struct PoolMetrics {
    /// Its name.
    pub pool: String,
    /// None: its master does not answer.
    pub status: Option<PoolStatus>,
    /// What its control group tells, where it has one.
    pub resources: Resources,
}

type Figure = fn(&Snapshot) -> u64;

/// Gauges under php-fpm's names: name, help, figure.
const OF_PHP_FPM: &[(&str, &str, Figure)] = &[
    ("phpfpm_start_since", "Seconds since the pool has started", |s| {
        s.start_since
    }),
    ("phpfpm_accepted_connections", "Requests accepted by the pool", |s| {
        s.accepted
    }),
    ("phpfpm_listen_queue", "Connections that wait for a worker", |s| {
        s.listen_queue.into()
    }),
    ("phpfpm_max_listen_queue", "Most connections that have waited", |s| {
        s.max_listen_queue.into()
    }),
    ("phpfpm_listen_queue_length", "Most connections that can wait", |s| {
        s.listen_queue_len.into()
    }),
    ("phpfpm_idle_processes", "Idle workers", |s| s.idle.into()),
    ("phpfpm_active_processes", "Workers with a request", |s| s.active.into()),
    ("phpfpm_total_processes", "Workers, idle and active", |s| {
        u64::from(s.idle) + u64::from(s.active)
    }),
    (
        "phpfpm_max_active_processes",
        "Most workers that have been active",
        |s| s.max_active.into(),
    ),
    (
        "phpfpm_max_children_reached",
        "Times that pm.max_children stood in the way",
        |s| s.max_children_reached.into(),
    ),
    ("phpfpm_slow_requests", "Requests beyond request_slowlog_timeout", |s| {
        s.slow_requests
    }),
];

type Count = fn(&PoolStatus) -> u64;

/// Counters, without their `_total`.
const COUNTERS: &[(&str, &str, Count)] = &[
    ("php_pool_requests", "Requests accepted by the pool", |p| {
        p.snapshot.accepted
    }),
    (
        "php_pool_max_children_reached",
        "Times that pm.max_children stood in the way",
        |p| p.snapshot.max_children_reached.into(),
    ),
    (
        "php_pool_slow_requests",
        "Requests beyond request_slowlog_timeout",
        |p| p.snapshot.slow_requests,
    ),
    (
        "php_pool_requests_timed_out",
        "Requests beyond request_terminate_timeout",
        |p| p.measured.timed_out,
    ),
    (
        "php_pool_requests_refused",
        "Requests refused by queue.max or queue.timeout",
        |p| p.measured.refused,
    ),
    ("php_pool_workers_started", "Workers started", |p| p.measured.spawned),
    (
        "php_pool_access_log_lost_lines",
        "Lines that the access log could not be given",
        |p| p.measured.access_log_lost,
    ),
];

/// Counters with a label, or of a control group.
const OTHER_COUNTERS: &[&str] = &[
    "php_pool_workers_ended",
    "php_pool_oom_kills",
    "php_pool_cpu_seconds",
    "php_pool_pressure_waiting_seconds",
    "php_pool_pressure_stalled_seconds",
];

/// Gauges of ours.
const GAUGES: &[(&str, &str, Count)] = &[
    (
        "php_pool_generation",
        "Generations that have served, this one included",
        |p| p.generation,
    ),
    ("php_pool_workers_limit", "pm.max_children", |p| p.max_children.into()),
    (
        "php_pool_workers_draining",
        "Workers of earlier generations, which end with their requests",
        |p| p.measured.draining.into(),
    ),
    ("php_pool_ready", "Whether a request that comes now is served", |p| {
        p.is_ready().into()
    }),
    (
        "php_pool_saturated",
        "Whether a request that comes now has to wait for the end of another",
        |p| p.is_saturated().into(),
    ),
];

type Measure = fn(&Measures) -> &Histogram;

/// Histograms: name, help, bounds, units of a bound for each of the metric's, figure.
const HISTOGRAMS: &[(&str, &str, &[u64], f64, Measure)] = &[
    (
        "php_pool_request_duration_seconds",
        "How long requests took, from their first byte to the end of the reply",
        &TIMES,
        1e6,
        |m| &m.durations,
    ),
    (
        "php_pool_queue_wait_seconds",
        "How long requests had waited for a worker, of those whose web server says when it had them (X-Request-Start)",
        &TIMES,
        1e6,
        |m| &m.waits,
    ),
    (
        "php_pool_request_memory_bytes",
        "Peak memory of requests",
        &SIZES,
        1.0,
        |m| &m.memories,
    ),
];

/// Stages and their label.
const STAGES: [(Stage, &str); 6] = [
    (Stage::None, "starting"),
    (Stage::Idle, "idle"),
    (Stage::ReadingHeaders, "reading"),
    (Stage::Info, "preparing"),
    (Stage::Running, "running"),
    (Stage::Finishing, "finishing"),
];

const STATES: [State; 6] = [
    State::Starting,
    State::Running,
    State::Reloading,
    State::Asleep,
    State::Failed,
    State::Stopping,
];

#[derive(Debug)]
struct Pools(Vec<PoolMetrics>);

impl Pools {
    /// A family; `values` writes those of one pool.
    fn family(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        kind: MetricType,
        mut values: impl FnMut(&PoolMetrics, &mut MetricEncoder<'_>) -> Result,
    ) -> Result {
        let mut family = encoder.encode_descriptor(name, help, None, kind)?;
        self.0.iter().try_for_each(|pool| values(pool, &mut family))
    }

    fn statuses(&self) -> impl Iterator<Item = (&str, &PoolStatus)> {
        self.0
            .iter()
            .filter_map(|p| Some((p.pool.as_str(), p.status.as_ref()?)))
    }

    fn of_groups(&self, encoder: &mut DescriptorEncoder<'_>) -> Result {
        type Value = fn(&Resources) -> Option<f64>;
        let gauges: [(&str, &str, Value); 2] = [
            ("php_pool_memory_bytes", "Memory of the pool's control group", |r| {
                r.memory.map(|n| n as f64)
            }),
            (
                "php_pool_memory_limit_bytes",
                "What that may be at most, for pools that have a limit (memory.max)",
                |r| r.memory_max.map(|n| n as f64),
            ),
        ];
        for (name, help, value) in gauges {
            self.family(encoder, name, help, MetricType::Gauge, |p, family| {
                match value(&p.resources) {
                    Some(value) => ConstGauge::new(value).encode(family.encode_family(&[("pool", p.pool.as_str())])?),
                    None => Ok(()),
                }
            })?;
        }
        let help = "Processes of the pool that the kernel has killed at a memory limit";
        self.family(encoder, "php_pool_oom_kills", help, MetricType::Counter, |p, family| {
            let Some(kills) = p.resources.oom_kills else {
                return Ok(());
            };
            ConstCounter::new(kills).encode(family.encode_family(&[("pool", p.pool.as_str())])?)
        })?;
        let help = "CPU time of the pool's control group";
        self.family(
            encoder,
            "php_pool_cpu_seconds",
            help,
            MetricType::Counter,
            |p, family| {
                for (mode, seconds) in &p.resources.cpu {
                    let labels = [("pool", p.pool.as_str()), ("mode", *mode)];
                    ConstCounter::new(*seconds).encode(family.encode_family(&labels)?)?;
                }
                Ok(())
            },
        )?;
        let pressures = [
            (
                "waiting",
                "Time in which some of the pool's tasks waited for this resource (PSI)",
            ),
            (
                "stalled",
                "Time in which all of the pool's tasks waited for this resource (PSI)",
            ),
        ];
        for (index, (word, help)) in pressures.into_iter().enumerate() {
            let name = format!("php_pool_pressure_{word}_seconds");
            self.family(encoder, &name, help, MetricType::Counter, |p, family| {
                for (resource, seconds) in &p.resources.pressure {
                    let labels = [("pool", p.pool.as_str()), ("resource", *resource)];
                    ConstCounter::new(seconds[index]).encode(family.encode_family(&labels)?)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

impl Collector for Pools {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result {
        let encoder = &mut encoder;
        let help = "Whether the pool's master answers";
        self.family(encoder, "phpfpm_up", help, MetricType::Gauge, |p, family| {
            let up = ConstGauge::new(i64::from(p.status.is_some()));
            up.encode(family.encode_family(&[("pool", p.pool.as_str())])?)
        })?;
        let of_each = |family: &mut MetricEncoder<'_>, pool: &str, metric: &dyn Fn(MetricEncoder<'_>) -> Result| {
            metric(family.encode_family(&[("pool", pool)])?)
        };
        if self.statuses().next().is_none() {
            return Ok(());
        }
        for (name, help, figure) in OF_PHP_FPM {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (pool, status) in self.statuses() {
                let metric = ConstGauge::new(figure(&status.snapshot));
                of_each(&mut family, pool, &|encoder| metric.encode(encoder))?;
            }
        }
        for (name, help, count) in GAUGES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (pool, status) in self.statuses() {
                let metric = ConstGauge::new(count(status));
                of_each(&mut family, pool, &|encoder| metric.encode(encoder))?;
            }
        }
        for (name, help, count) in COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (pool, status) in self.statuses() {
                let metric = ConstCounter::new(count(status));
                of_each(&mut family, pool, &|encoder| metric.encode(encoder))?;
            }
        }
        let mut family =
            encoder.encode_descriptor("php_pool_workers", "Workers by what they do", None, MetricType::Gauge)?;
        for (pool, status) in self.statuses() {
            for (stage, label) in STAGES {
                let processes = &status.snapshot.processes;
                let count = processes.iter().filter(|one| one.stage == stage).count() as u64;
                ConstGauge::new(count).encode(family.encode_family(&[("pool", pool), ("state", label)])?)?;
            }
        }
        let help = "What the pool does: 1 for the state that it is in";
        let mut family = encoder.encode_descriptor("php_pool_state", help, None, MetricType::Gauge)?;
        for (pool, status) in self.statuses() {
            for state in STATES {
                let labels = [("pool", pool), ("state", state.name())];
                ConstGauge::new(u64::from(status.state == state)).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Workers that have ended, by the reason";
        let mut family = encoder.encode_descriptor("php_pool_workers_ended", help, None, MetricType::Counter)?;
        for (pool, status) in self.statuses() {
            let exits = &status.measured.exits;
            for (reason, count) in [
                ("surplus", exits.surplus),
                ("recycled", exits.recycled),
                ("drained", exits.drained),
                ("timeout", exits.timeout),
                ("oom", exits.oom),
                ("signal", exits.signal),
                ("code", exits.code),
            ] {
                let labels = [("pool", pool), ("reason", reason)];
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        for (name, help, bounds, unit, measure) in HISTOGRAMS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for (pool, status) in self.statuses() {
                let histogram = measure(&status.measured.measures);
                let bounds = bounds.iter().map(|bound| *bound as f64 / unit);
                let (bounded, beyond) = histogram.counts.split_at(bounds.len());
                let last = (f64::INFINITY, beyond.iter().copied().fold(0, u64::saturating_add));
                let buckets: Vec<_> = bounds.zip(bounded.iter().copied()).chain([last]).collect();
                let sum = histogram.sum as f64 / unit;
                family
                    .encode_family(&[("pool", pool)])?
                    .encode_histogram::<NoLabelSet>(sum, histogram.count(), &buckets, None)?;
            }
        }
        if self.0.iter().any(|p| p.resources != Resources::default()) {
            self.of_groups(encoder)?;
        }
        Ok(())
    }
}

/// A format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    /// OpenMetrics 1.0.0
    OpenMetrics,
    /// Prometheus's own, older text, which promtool reads: there a counter is declared by its whole name.
    Prometheus,
}

impl Exposition {
    /// What a scraper's Accept header asks for.
    pub fn of(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// Content-Type
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// The metrics of pools.
    pub fn of_pools(self, pools: Vec<PoolMetrics>) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Pools(pools)));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("a String takes what is written to it");
        match self {
            Self::OpenMetrics => text,
            Self::Prometheus => text.split_inclusive('\n').filter_map(prometheus_line).collect(),
        }
    }
}

fn prometheus_line(line: &str) -> Option<Cow<'_, str>> {
    let Some((keyword, rest)) = line.strip_prefix("# ").and_then(|rest| rest.split_once(' ')) else {
        return (line != "# EOF\n").then_some(Cow::Borrowed(line));
    };
    let (name, rest) = rest.split_once(' ')?;
    let counts = COUNTERS.iter().any(|(counter, ..)| *counter == name) || OTHER_COUNTERS.contains(&name);
    let total = if counts { "_total" } else { "" };
    Some(Cow::Owned(format!("# {keyword} {name}{total} {rest}")))
}
