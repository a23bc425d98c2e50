//! The life of a pool whose workers are used up, as a simulation: what is asserted is that nobody waits for a fork, and that
//! there are never too many.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::Pm;

const STEP: Duration = Duration::from_millis(1);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stands {
    /// Being made until then, as a spare or not.
    Forked(Duration, bool),
    Held,
    Idle,
    Busy(Duration),
    /// Gone by itself, which nobody has noticed.
    Gone,
}

struct Worker {
    id: u64,
    stands: Stands,
    served: u32,
    born: Duration,
    retired: bool,
}

/// A pool under a load that never ends: whoever is idle has the next request at once.
struct Life {
    limits: Limits,
    memory: Memory,
    now: Duration,
    workers: Vec<Worker>,
    next: u64,
    /// pm.max_requests, and how many before its last one a worker says so.
    most: u32,
    lead: u32,
    age: Option<Duration>,
    fork: Duration,
    request: Duration,
    /// Most that accept, and most that exist.
    accepting: usize,
    existing: usize,
    recycled: u32,
}

impl Life {
    fn worn(&self, worker: &Worker) -> bool {
        matches!(worker.stands, Stands::Idle | Stands::Busy(_))
            && (worker.served + self.lead >= self.most || self.over(worker))
    }

    fn over(&self, worker: &Worker) -> bool {
        self.age.is_some_and(|age| worker.born + age <= self.now)
    }

    fn look(&mut self) {
        let mut pool = Snapshot {
            now: self.now,
            ..Snapshot::default()
        };
        let before = self.workers.len();
        self.workers.retain(|worker| worker.stands != Stands::Gone);
        pool.recycling.left = (before - self.workers.len()) as u32;
        self.recycled += pool.recycling.left;
        for worker in &self.workers {
            match worker.stands {
                Stands::Forked(_, true) => pool.recycling.starting += 1,
                Stands::Held => pool.recycling.ready += 1,
                Stands::Forked(_, false) => pool.starting += 1,
                Stands::Busy(_) => pool.active += 1,
                Stands::Idle => pool.idle.push(Idle {
                    worker: WorkerId(worker.id),
                    started: worker.born,
                    since: self.now,
                    asked: None,
                }),
                Stands::Gone => {}
            }
            if self.worn(worker) {
                pool.recycling.worn += 1;
                pool.recycling.retiring += u32::from(worker.retired);
            }
            if self.over(worker) && self.worn(worker) && !worker.retired {
                pool.recycling.over.push(WorkerId(worker.id));
            }
        }
        pool.peak = pool.active;
        let decision = decide(&self.limits, &mut self.memory, &pool);
        assert_eq!(decision.dismiss, 0, "a spare was made for nothing");
        for _ in 0..decision.release {
            let spare = self.workers.iter_mut().find(|worker| worker.stands == Stands::Held);
            let spare = match spare {
                Some(spare) => spare,
                None => (self.workers.iter_mut())
                    .find(|worker| matches!(worker.stands, Stands::Forked(_, true)))
                    .unwrap(),
            };
            spare.stands = match spare.stands {
                Stands::Forked(until, _) => Stands::Forked(until, false),
                _ => Stands::Idle,
            };
            spare.born = self.now;
        }
        for id in decision.retire {
            self.workers
                .iter_mut()
                .find(|worker| worker.id == id.0)
                .unwrap()
                .retired = true;
        }
        for index in 0..decision.spawn + decision.hold {
            self.next += 1;
            self.workers.push(Worker {
                id: self.next,
                stands: Stands::Forked(self.now + self.fork, index >= decision.spawn),
                served: 0,
                born: self.now,
                retired: false,
            });
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        let (now, request, most) = (self.now, self.request, self.most);
        for worker in &mut self.workers {
            worker.stands = match worker.stands {
                Stands::Forked(until, spare) if until <= now => match spare {
                    true => Stands::Held,
                    false => Stands::Idle,
                },
                Stands::Busy(until) if until <= now => {
                    worker.served += 1;
                    Stands::Idle
                }
                stands => stands,
            };
            if worker.stands == Stands::Idle {
                worker.stands = match worker.served >= most || worker.retired {
                    true => Stands::Gone,
                    false => Stands::Busy(now + request),
                };
            }
        }
        self.look();
        let accepts = |worker: &&Worker| matches!(worker.stands, Stands::Idle | Stands::Busy(_));
        self.accepting = self.accepting.max(self.workers.iter().filter(accepts).count());
        self.existing = self.existing.max(self.workers.len());
    }

    fn capacity(&self) -> usize {
        let accepts = |worker: &&Worker| matches!(worker.stands, Stands::Idle | Stands::Busy(_));
        self.workers.iter().filter(accepts).count()
    }
}

fn life(max_children: u32, most: u32, lead: u32, age: Option<Duration>) -> Life {
    let limits = Limits {
        style: Pm::Static,
        max_children,
        start_servers: 1,
        min_spare: 1,
        max_spare: 1,
        max_spawn_rate: 32,
        idle_timeout: Duration::from_secs(10),
        most_spares: max_children.div_ceil(4),
    };
    Life {
        memory: Memory::new(&limits, 0),
        limits,
        now: Duration::from_secs(1000),
        workers: Vec::new(),
        next: 0,
        most,
        lead,
        age,
        fork: 20 * STEP,
        request: 10 * STEP,
        accepting: 0,
        existing: 0,
        recycled: 0,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Workers that did not start together; each is used up after some requests, and says so three times the length of a fork
    /// before.
    #[test]
    fn no_place_is_ever_empty(max in 1u32..12, most in 20u32..60, by_age in any::<bool>()) {
        let age = by_age.then(|| Duration::from_millis(u64::from(most) * 20));
        let mut pool = life(max, if by_age { u32::MAX } else { most }, 6, age);
        pool.look();
        for _ in 0..100 {
            pool.step();
        }
        for (index, worker) in pool.workers.iter_mut().enumerate() {
            // Nobody is at its end before it could have said so.
            worker.served = index as u32 * (most - 6) / max;
            worker.born -= age.unwrap_or_default() * index as u32 / max;
        }
        for _ in 0..4000 {
            pool.step();
            prop_assert_eq!(pool.capacity(), max as usize, "a place was empty");
        }
        prop_assert!(pool.recycled > 0);
        prop_assert_eq!(pool.accepting, max as usize);
        prop_assert!(pool.existing <= (max + max.div_ceil(4)) as usize);
    }
}

#[test]
fn when_process_max_allows_no_spare_the_old_leave_one_by_one() {
    let mut pool = life(4, u32::MAX, 0, None);
    let recycling = Recycling {
        worn: 3,
        over: vec![WorkerId(1), WorkerId(2), WorkerId(3)],
        ..Recycling::default()
    };
    let full = Snapshot {
        now: pool.now,
        active: 4,
        room: Some(0),
        recycling,
        ..Snapshot::default()
    };
    let decision = decide(&pool.limits, &mut pool.memory, &full);
    assert_eq!((decision.retire, decision.hold), (vec![WorkerId(1)], 0));
}

#[test]
fn spares_that_nobody_needs_any_more_are_let_go() {
    let mut pool = life(4, u32::MAX, 0, None);
    let calm = Snapshot {
        now: pool.now,
        active: 4,
        recycling: Recycling {
            ready: 1,
            ..Recycling::default()
        },
        ..Snapshot::default()
    };
    assert_eq!(decide(&pool.limits, &mut pool.memory, &calm).dismiss, 1);
}

#[test]
fn what_dies_as_a_spare_is_made_ever_more_slowly() {
    let mut pool = life(4, u32::MAX, 0, None);
    pool.memory.backoff.failed(pool.now, 0.5);
    pool.memory.backoff.failed(pool.now, 0.5);
    let worn = Snapshot {
        now: pool.now,
        active: 4,
        recycling: Recycling {
            worn: 1,
            ..Recycling::default()
        },
        ..Snapshot::default()
    };
    let decision = decide(&pool.limits, &mut pool.memory, &worn);
    assert_eq!(decision.hold, 0);
    assert!(decision.wake.is_some_and(|at| at > pool.now));
}
