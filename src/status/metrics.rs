//! OpenMetrics of many pools, for a scraper: valid, and labelled by pool.
//!
//! Each figure is there twice where it is a counter: under php-fpm's name, which dashboards know and which lacks the
//! `_total` that a counter must have (so it is declared a gauge), and as a counter of ours.

use std::borrow::Cow;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::Snapshot;
use crate::scoreboard::Stage;

/// A pool's part of the exposition.
#[derive(Clone, Debug)]
pub struct PoolMetrics {
    /// Its name.
    pub pool: String,
    /// None: its master does not answer.
    pub snapshot: Option<Snapshot>,
}

type Figure = fn(&Snapshot) -> u64;

/// Gauges: name, help, figure.
const GAUGES: &[(&str, &str, Figure)] = &[
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

/// Counters, without their `_total`.
const COUNTERS: &[(&str, &str, Figure)] = &[
    ("php_pool_requests", "Requests accepted by the pool", |s| s.accepted),
    (
        "php_pool_max_children_reached",
        "Times that pm.max_children stood in the way",
        |s| s.max_children_reached.into(),
    ),
    (
        "php_pool_slow_requests",
        "Requests beyond request_slowlog_timeout",
        |s| s.slow_requests,
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

#[derive(Debug)]
struct Pools(Vec<PoolMetrics>);

impl Pools {
    /// A family with one value for each pool that answers.
    fn family<M: EncodeMetric>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        value: impl Fn(&Snapshot) -> M,
    ) -> std::fmt::Result {
        let mut pools = self
            .0
            .iter()
            .filter_map(|p| Some((&p.pool, value(p.snapshot.as_ref()?))))
            .peekable();
        let Some((_, first)) = pools.peek() else { return Ok(()) };
        let mut family = encoder.encode_descriptor(name, help, None, first.metric_type())?;
        for (pool, metric) in pools {
            metric.encode(family.encode_family(&[("pool", pool.as_str())])?)?;
        }
        Ok(())
    }
}

impl Collector for Pools {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let up = |p: &PoolMetrics| ConstGauge::new(i64::from(p.snapshot.is_some()));
        let kind = ConstGauge::new(0i64).metric_type();
        let mut family = encoder.encode_descriptor("phpfpm_up", "Whether the pool's master answers", None, kind)?;
        for p in &self.0 {
            up(p).encode(family.encode_family(&[("pool", p.pool.as_str())])?)?;
        }
        for (name, help, figure) in GAUGES {
            self.family(&mut encoder, name, help, |s| ConstGauge::new(figure(s)))?;
        }
        for (name, help, figure) in COUNTERS {
            self.family(&mut encoder, name, help, |s| ConstCounter::new(figure(s)))?;
        }
        let mut family = encoder.encode_descriptor("php_pool_workers", "Workers by what they do", None, kind)?;
        for p in &self.0 {
            for (stage, label) in STAGES {
                let Some(snapshot) = &p.snapshot else { continue };
                let count = snapshot.processes.iter().filter(|one| one.stage == stage).count();
                let labels = [("pool", p.pool.as_str()), ("state", label)];
                ConstGauge::new(count as u64).encode(family.encode_family(&labels)?)?;
            }
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
    let total = if COUNTERS.iter().any(|(counter, ..)| *counter == name) {
        "_total"
    } else {
        ""
    };
    Some(Cow::Owned(format!("# {keyword} {name}{total} {rest}")))
}
