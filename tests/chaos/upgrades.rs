//! The program is replaced under load: the new one takes over in the same process, and no client notices.

use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use crate::Case;
use crate::load::{Kind, Load, Shared};
use crate::reloads::{Stage, descriptors};
use crate::schedule;
use crate::support::fcgi::PATIENCE;
use crate::support::server::Setup;

pub const CASES: &[Case] = &[("upgrade::under_load_it_loses_and_stalls_nothing", under_load)];

fn under_load() {
    let stage = Stage::new(Setup {
        name: "upgrades",
        workers: 6,
        ..Setup::BASE
    });
    schedule::own_program(&stage.server.home);
    let shared = Shared::new(stage.script.clone(), 1, ["without upgrades", "during upgrades"]);
    let mut load = Load::new(shared.clone());
    for keep in [false, true] {
        for kind in [Kind::Short, Kind::Short, Kind::Long, Kind::Finish] {
            load.client("www", &stage.server.address, kind, keep);
        }
    }
    thread::sleep(Duration::from_secs(4));
    let master = schedule::master(&stage.server);
    let before = descriptors(master);
    shared.chaos.store(true, Relaxed);
    let until = Instant::now() + Duration::from_secs(12);
    let mut upgrades = 0;
    while upgrades < 30 && Instant::now() < until {
        schedule::upgrade(&stage.server);
        upgrades += 1;
    }
    let shared = load.stop();
    let account = shared.ledger.account();
    println!("{upgrades} upgrades under load: {account}");
    assert!(upgrades > 3, "only {upgrades} upgrades in 12 s");
    assert!(account.unattributed.is_empty(), "{account}\n{}", stage.server.log());
    account.assert_not_stalled(shared.phases);
    assert_eq!(schedule::master(&stage.server), master, "it is the same process");
    // What was handed from program to program has not grown.
    let deadline = Instant::now() + PATIENCE;
    while descriptors(master) > before + 8 {
        assert!(
            Instant::now() < deadline,
            "after {upgrades} upgrades the master has {} descriptors for {before}",
            descriptors(master)
        );
        thread::sleep(Duration::from_millis(10));
    }
    stage.stop();
}
