//! Properties over arbitrary moments, and over the life of a simulated pool.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::Pm;

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn limits(style: Pm, max_children: u32, min_spare: u32, max_spare: u32) -> Limits {
    Limits {
        style,
        max_children,
        start_servers: min_spare,
        min_spare,
        max_spare,
        max_spawn_rate: 32,
        idle_timeout: seconds(10.0),
        most_spares: max_children.div_ceil(4),
    }
}

/// A pool of which nothing is real but the decisions: time goes in steps of a millisecond, a worker is made in two.
struct Simulation {
    limits: Limits,
    memory: Memory,
    now: Duration,
    workers: Vec<Worker>,
    queue: u32,
    length: Duration,
    next: u64,
    wake: Option<Duration>,
    spawned: u32,
    left: u32,
    most: u32,
    /// Most requests at a time since the last look.
    peak: u32,
}

struct Worker {
    id: WorkerId,
    started: Duration,
    ready: Duration,
    busy: Option<Duration>,
    since: Duration,
}

const STEP: Duration = Duration::from_millis(1);

impl Simulation {
    fn new(limits: Limits) -> Self {
        let memory = Memory::new(&limits, 0);
        let mut simulation = Self {
            limits,
            memory,
            now: seconds(1000.0),
            workers: Vec::new(),
            queue: 0,
            length: seconds(0.5),
            next: 0,
            wake: None,
            spawned: 0,
            left: 0,
            most: 0,
            peak: 0,
        };
        simulation.look();
        simulation
    }

    fn look(&mut self) {
        let mut pool = Snapshot {
            now: self.now,
            waiting: self.queue,
            ..Snapshot::default()
        };
        for worker in &self.workers {
            if worker.ready > self.now {
                pool.starting += 1;
            } else if worker.busy.is_some() {
                pool.active += 1;
            } else {
                pool.idle.push(Idle {
                    worker: worker.id,
                    started: worker.started,
                    since: worker.since,
                    asked: None,
                });
            }
        }
        pool.peak = std::mem::replace(&mut self.peak, pool.active).max(pool.active);
        let decision = decide(&self.limits, &mut self.memory, &pool);
        for _ in 0..decision.spawn {
            self.next += 1;
            let ready = self.now + 2 * STEP;
            self.workers.push(Worker {
                id: WorkerId(self.next),
                started: self.now,
                ready,
                busy: None,
                since: ready,
            });
        }
        self.spawned += decision.spawn;
        self.left += decision.ask.len() as u32;
        self.workers.retain(|worker| !decision.ask.contains(&worker.id));
        self.wake = decision.wake;
        self.most = self.most.max(self.workers.len() as u32);
    }

    fn step(&mut self) {
        self.now += STEP;
        let mut rang = false;
        for worker in &mut self.workers {
            if worker.busy.is_some_and(|until| until <= self.now) {
                worker.busy = None;
                worker.since = self.now;
            }
            if worker.ready <= self.now && worker.busy.is_none() && self.queue > 0 {
                self.queue -= 1;
                worker.busy = Some(self.now + self.length);
                rang = true;
            }
        }
        let busy = self.workers.iter().filter(|worker| worker.busy.is_some()).count() as u32;
        self.peak = self.peak.max(busy);
        let idle = self.idle();
        let below = if self.limits.style == Pm::Dynamic {
            self.limits.min_spare
        } else {
            1
        };
        rang &= idle < below;
        if rang || (idle == 0 && self.queue > 0) || self.wake.is_some_and(|at| at <= self.now) {
            self.look();
        }
        assert!(self.workers.len() as u32 <= self.limits.max_children);
    }

    fn idle(&self) -> u32 {
        self.workers
            .iter()
            .filter(|worker| worker.ready <= self.now && worker.busy.is_none())
            .count() as u32
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    /// Steps until nothing waits and nobody is busy; how long that took.
    fn until_done(&mut self) -> Duration {
        let begin = self.now;
        while self.queue > 0 || self.workers.iter().any(|worker| worker.busy.is_some()) {
            self.step();
            assert!(self.now < begin + seconds(600.0), "the queue is not worked off");
        }
        self.now - begin
    }
}

#[test]
fn a_pool_begins_with_all_of_its_start_servers_whatever_the_rate() {
    let limits = Limits {
        start_servers: 50,
        max_spawn_rate: 5,
        ..limits(Pm::Dynamic, 60, 1, 60)
    };
    assert_eq!(Simulation::new(limits).spawned, 50);
}

#[test]
fn a_dynamic_pool_takes_forty_at_once() {
    let mut pool = Simulation::new(Limits {
        start_servers: 2,
        ..limits(Pm::Dynamic, 40, 1, 3)
    });
    pool.run(seconds(0.1));
    pool.queue = 40;
    let took = pool.until_done();
    assert!(took < seconds(1.2), "{took:?}");
}

#[test]
fn an_ondemand_pool_takes_eight_at_once_and_goes_to_sleep() {
    let mut pool = Simulation::new(limits(Pm::Ondemand, 40, 0, 0));
    assert_eq!(pool.workers.len(), 0);
    pool.queue = 8;
    let took = pool.until_done();
    assert!(took < seconds(0.6), "{took:?}");
    assert_eq!(pool.most, 8);
    pool.run(seconds(11.0));
    assert_eq!(pool.workers.len(), 0);
}

#[test]
fn a_burst_of_short_requests_makes_no_crowd() {
    let mut pool = Simulation::new(limits(Pm::Dynamic, 100, 2, 4));
    pool.run(seconds(0.1));
    pool.length = STEP;
    for _ in 0..1000 {
        pool.queue += 4;
        pool.run(STEP * 8);
    }
    assert!(pool.most <= 10, "{} workers", pool.most);
}

#[test]
fn a_steady_load_moves_nothing() {
    let mut pool = Simulation::new(limits(Pm::Dynamic, 20, 1, 1));
    pool.length = seconds(0.15);
    let mut moved = 0;
    for round in 0..200 {
        pool.queue += 1;
        pool.run(seconds(0.3));
        if round == 20 {
            moved = pool.spawned + pool.left;
        }
    }
    assert_eq!(pool.spawned + pool.left, moved);
}

#[test]
fn a_short_request_is_no_shortage() {
    let mut pool = Simulation::new(limits(Pm::Dynamic, 20, 1, 1));
    pool.length = seconds(0.08);
    for _ in 0..20 {
        pool.queue += 1;
        pool.run(seconds(0.5));
    }
    assert_eq!(pool.most, 1);
}

#[test]
fn after_a_burst_a_dynamic_pool_shrinks_within_half_a_minute() {
    let mut pool = Simulation::new(limits(Pm::Dynamic, 60, 2, 4));
    pool.queue = 50;
    pool.until_done();
    assert!(pool.workers.len() > 40);
    pool.run(seconds(30.0));
    assert_eq!(pool.workers.len(), 4);
}

#[test]
fn a_worker_that_had_to_be_killed_is_replaced() {
    let limits = limits(Pm::Dynamic, 2, 1, 1);
    let mut memory = Memory::new(&limits, 0);
    let now = seconds(100.0);
    let idle = |id, asked| Idle {
        worker: WorkerId(id),
        started: seconds(id as f64),
        since: seconds(50.0),
        asked,
    };
    let two = |asked| Snapshot {
        now,
        idle: vec![idle(1, asked), idle(2, None)],
        ..Snapshot::default()
    };
    let first = decide(&limits, &mut memory, &two(None));
    assert_eq!((first.ask, first.kill), (vec![WorkerId(1)], vec![]));
    let soon = decide(&limits, &mut memory, &two(Some(now)));
    assert_eq!((soon.kill, soon.wake), (vec![], Some(now + seconds(1.0))));
    let later = decide(&limits, &mut memory, &two(Some(now - seconds(1.0))));
    assert_eq!(later.kill, vec![WorkerId(1)]);
    let gone = Snapshot {
        now,
        idle: vec![idle(2, None)],
        lost: 1,
        ..Snapshot::default()
    };
    assert_eq!(decide(&limits, &mut memory, &gone).replace, 1);
}

#[test]
fn max_children_is_said_when_it_is_true_and_once_in_a_while() {
    let limits = limits(Pm::Dynamic, 2, 1, 1);
    let mut memory = Memory::new(&limits, 0);
    let at = |now, active, waiting| Snapshot {
        now: seconds(now),
        active,
        waiting,
        ..Snapshot::default()
    };
    assert!(decide(&limits, &mut memory, &at(0.0, 1, 0)).lines.is_empty());
    let full = decide(&limits, &mut memory, &at(1.0, 2, 3));
    assert_eq!(
        (full.lines.as_slice(), full.max_children_reached),
        (&[Line::MaxChildren][..], true)
    );
    assert_eq!(
        decide(&limits, &mut memory, &at(2.0, 2, 3)),
        Decision {
            wake: Some(seconds(3.0)),
            ..Decision::default()
        }
    );
    assert_eq!(decide(&limits, &mut memory, &at(3.0, 1, 0)).spawn, 1);
    let again = decide(&limits, &mut memory, &at(4.0, 2, 3));
    assert_eq!((again.lines.as_slice(), again.max_children_reached), (&[][..], true));
    decide(&limits, &mut memory, &at(5.0, 1, 0));
    assert_eq!(decide(&limits, &mut memory, &at(62.0, 2, 3)).lines, [Line::MaxChildren]);
}

#[test]
fn what_keeps_dying_is_made_ever_more_slowly() {
    let limits = limits(Pm::Static, 1, 0, 0);
    let mut memory = Memory::new(&limits, 0);
    let mut now = seconds(1.0);
    let mut made = 0;
    while now < seconds(61.0) {
        let decision = decide(
            &limits,
            &mut memory,
            &Snapshot {
                now,
                ..Snapshot::default()
            },
        );
        if decision.spawn == 1 {
            made += 1;
            memory.backoff.failed(now, 0.5);
        } else {
            now = decision.wake.expect("the next attempt has its time");
        }
    }
    assert!((8..=14).contains(&made), "{made} attempts in a minute");
}

fn any_limits() -> impl Strategy<Value = Limits> {
    (
        prop_oneof![Just(Pm::Static), Just(Pm::Dynamic), Just(Pm::Ondemand)],
        1u32..60,
        any::<[u8; 3]>(),
        1u32..64,
        1u64..20,
    )
        .prop_map(|(style, max_children, [a, b, c], max_spawn_rate, idle)| {
            let of = |x: u8, least: u32, most: u32| least + u32::from(x) % (most - least + 1);
            let max_spare = of(a, 1, max_children);
            let min_spare = of(b, 1, max_spare);
            Limits {
                style,
                max_children,
                start_servers: of(c, min_spare, max_spare),
                min_spare,
                max_spare,
                max_spawn_rate,
                idle_timeout: Duration::from_secs(idle),
                most_spares: max_children.div_ceil(4),
            }
        })
}

fn any_pool() -> impl Strategy<Value = Snapshot> {
    let idle =
        (0u64..1000, 0u64..1000, 0u64..1000, proptest::option::of(0u64..1000)).prop_map(|(id, a, b, asked)| Idle {
            worker: WorkerId(id),
            started: Duration::from_secs(a),
            since: Duration::from_secs(b),
            asked: asked.map(Duration::from_secs),
        });
    let counts = (
        0u32..60,
        0u32..60,
        0u32..5000,
        0u32..10,
        proptest::option::of(0u32..100),
    );
    let recycling = (
        0u32..9,
        0u32..9,
        0u32..60,
        0u32..9,
        proptest::collection::vec(0u64..1000, 0..9),
    )
        .prop_map(|(ready, starting, worn, left, over)| Recycling {
            ready,
            starting,
            worn: worn + over.len() as u32,
            retiring: worn / 4,
            left,
            over: over.into_iter().map(WorkerId).collect(),
        });
    (0u64..2000, proptest::collection::vec(idle, 0..40), counts, recycling).prop_map(
        |(now, idle, (starting, active, waiting, lost, room), recycling)| Snapshot {
            now: Duration::from_secs(now),
            idle,
            starting,
            active,
            counted: 0,
            counted_asked: 0,
            ending: lost / 2,
            active_asked: active / 2,
            peak: active,
            waiting,
            lost,
            room,
            recycling,
        },
    )
}

proptest! {
    #[test]
    fn every_moment_keeps_the_limits(limits in any_limits(), moments in proptest::collection::vec(any_pool(), 1..8)) {
        let mut memory = Memory::new(&limits, 0);
        for pool in moments {
            let decision = decide(&limits, &mut memory, &pool);
            let grown = decision.spawn + decision.release;
            prop_assert!(grown == 0 || pool.total() + grown <= limits.max_children);
            prop_assert!(pool.room.is_none_or(|room| decision.spawn + decision.hold <= room));
            let spares = pool.recycling.all_spares();
            prop_assert!(decision.release + decision.dismiss <= spares);
            prop_assert!(decision.hold == 0 || spares - decision.release + decision.hold <= limits.most_spares);
            prop_assert!(decision.hold == 0 || decision.dismiss == 0, "spares come and go at once");
            prop_assert!(decision.retire.iter().all(|id| pool.recycling.over.contains(id)));
            let ready = pool.recycling.ready.saturating_sub(decision.release + pool.recycling.retiring);
            prop_assert!(decision.retire.len() as u32 <= ready.max(u32::from(pool.room.is_some())));
            prop_assert!(decision.replace <= decision.spawn);
            let free = pool.idle.iter().filter(|idle| idle.asked.is_none());
            prop_assert!(decision.ask.iter().all(|id| free.clone().any(|idle| idle.worker == *id)));
            let asked = |id| pool.idle.iter().any(|idle| idle.worker == id && idle.asked.is_some());
            prop_assert!(decision.kill.iter().all(|id| asked(*id)));
            if limits.style == Pm::Dynamic && !decision.ask.is_empty() {
                prop_assert!(free.count() - decision.ask.len() >= limits.min_spare as usize);
            }
            prop_assert!(grown == 0 || decision.ask.is_empty(), "it grows and shrinks at once");
            prop_assert!(decision.wake.is_none_or(|wake| wake > pool.now), "it would spin");
        }
    }

    #[test]
    fn from_nothing_to_what_the_queue_needs_in_one_step(max in 1u32..200, waiting in 1u32..500) {
        let limits = limits(Pm::Ondemand, max, 0, 0);
        let mut memory = Memory::new(&limits, 0);
        let decision = decide(&limits, &mut memory, &Snapshot { waiting, ..Snapshot::default() });
        prop_assert_eq!(decision.spawn, waiting.min(max));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Under a load that does not change, the pool comes to rest: between its limits, and without making or ending anybody.
    #[test]
    fn a_constant_load_is_met_and_then_nothing_moves(limits in any_limits(), load in 0u32..30) {
        let mut pool = Simulation::new(limits.clone());
        pool.length = seconds(10_000.0);
        pool.queue = load;
        // All workers may have to be made, at `max_spawn_rate`; then what is too many leaves, by quarters.
        pool.run(seconds(45.0 + f64::from(limits.max_children) / f64::from(limits.max_spawn_rate)));
        let (spawned, left) = (pool.spawned, pool.left);
        pool.run(seconds(10.0));
        prop_assert_eq!((pool.spawned, pool.left), (spawned, left));
        let served = load.min(limits.max_children);
        let total = pool.workers.len() as u32;
        prop_assert_eq!(total - pool.idle(), served);
        match limits.style {
            Pm::Static => prop_assert_eq!(total, limits.max_children),
            Pm::Dynamic => {
                prop_assert!(pool.idle() <= limits.max_spare);
                prop_assert!(pool.idle() >= limits.min_spare.min(limits.max_children - served));
            }
            Pm::Ondemand => prop_assert_eq!(total, served),
        }
    }
}
