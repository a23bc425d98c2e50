//! A generation is handed on to the master that takes over.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Drain, Generation, Life};
use crate::config::Pool;
use crate::master::access_log;
use crate::master::context::Context;
use crate::master::listen::Sockets;
use crate::master::queue::Queue;
use crate::master::saved::{Kept, Restorer, Saver};
use crate::master::stamp::Files;
use crate::master::users::Identity;
use crate::master::watch::{self, GenerationId, Place, PoolId};
use crate::master::worker::{SavedWorker, Worker};
use crate::master::zygote::{SavedZygote, Zygote};
use crate::scoreboard::{Scoreboard, TraceLayout};

/// A generation, for a successor.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedGeneration {
    id: GenerationId,
    config: Pool,
    identity: Identity,
    /// The key of what it listens on.
    listener: String,
    /// Those of what it listens on beside.
    #[serde(default)]
    further: Vec<String>,
    life: Life,
    begun: Duration,
    board: Kept,
    /// The name of its access log.
    log: Option<Kept>,
    bell: Kept,
    workers: Vec<SavedWorker>,
    drain: Option<Drain>,
    quit: Option<Duration>,
    trace_layout: Vec<u64>,
    php: String,
    exposed: bool,
    mapped: Files,
    refused: u32,
    zygote: SavedZygote,
}

impl Generation {
    /// What is to go on.
    pub fn save(&self, saver: &mut Saver) -> SavedGeneration {
        SavedGeneration {
            id: self.place.generation,
            config: (*self.config).clone(),
            identity: self.identity.clone(),
            listener: self.listeners[0].key(),
            further: self.listeners[1..].iter().map(|listener| listener.key()).collect(),
            life: self.life,
            begun: self.begun,
            board: saver.keep(&self.board.fd()),
            log: self.access_log().map(|log| log.name(saver)),
            bell: saver.keep(&*self.bell),
            workers: self.workers.values().map(|worker| worker.save(saver)).collect(),
            drain: self.drain,
            quit: self.quit,
            trace_layout: self.trace_layout.to_words().to_vec(),
            php: self.php.clone(),
            exposed: self.exposed,
            mapped: self.mapped.clone(),
            refused: self.refused,
            zygote: self.zygote.save(saver),
        }
    }

    /// Goes on with it.
    ///
    /// # Errors
    /// When a descriptor is missing, or the scoreboard is of another version.
    pub fn restore(
        ctx: &Rc<Context>,
        pool: PoolId,
        queue: &Queue,
        (sockets, logs): (&Sockets, &access_log::Restored),
        saved: SavedGeneration,
        fds: &mut Restorer,
    ) -> io::Result<Self> {
        let generation = saved.id;
        let place = Place { pool, generation };
        let (config, closer, reader) = (Rc::new(saved.config), queue.closer(), queue.reader());
        let board = Arc::new(Scoreboard::open(fds.take(saved.board)?).map_err(io::Error::other)?);
        let log = saved.log.and_then(|log| logs.get(&log));
        let following = log.map(|log| log.follow(place, &board, &ctx.events)).transpose()?;
        let zygote = Zygote::restore(ctx, place, &config, (closer, reader), saved.zygote, fds)?;
        let bell = Rc::new(fds.take(saved.bell)?);
        let ringing = watch::bell(&bell, &ctx.events, place)?;
        let mut free: BTreeSet<u32> = (0..board.slots() as u32).collect();
        let mut workers = BTreeMap::new();
        for worker in saved.workers {
            let worker = Worker::restore(ctx, place, &config, &board, (closer, reader), worker, fds)?;
            if !free.remove(&worker.slot) {
                return Err(io::Error::other("two workers have one slot of the scoreboard"));
            }
            workers.insert(worker.id, worker);
        }
        let layout = saved.trace_layout.try_into();
        Ok(Self {
            place,
            config,
            identity: saved.identity,
            listeners: sockets.all_known(&saved.listener, &saved.further)?,
            life: saved.life,
            begun: saved.begun,
            board,
            following,
            workers,
            drain: saved.drain,
            quit: saved.quit,
            trace_layout: layout.map_or_else(|_| TraceLayout::default(), TraceLayout::from_words),
            php: saved.php,
            exposed: saved.exposed,
            mapped: saved.mapped,
            awaited: None,
            refused: saved.refused,
            ctx: ctx.clone(),
            zygote,
            closer: closer.clone(),
            reader: reader.clone(),
            free,
            bell,
            _ringing: ringing,
        })
    }
}
