//! `php-pool bus`: all pools of the machine on D-Bus, as `org.phppool`.
//!
//! It keeps nothing but a master's last answer for half a second, as everybody may ask: the pools are the files in
//! `/etc/php-pool/pool.d` at the time of the question, what they do is asked of their masters at the control sockets, and of
//! systemd where no master runs; so looking wakes nobody, and who looks twice sees the difference. Masters drop what happens on a datagram socket of systemd's that starts this service, so a monitor
//! needs nothing of ours to run before; it leaves again when nobody has asked for a while.
//!
//! - [`pool`]: the pools and what they do; [`object`]: what they look like on the bus
//! - [`caller`]: who may do what; [`events`]: what has happened

#![forbid(unsafe_code)]

mod caller;
mod events;
mod object;
mod pool;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use futures_lite::StreamExt;
use futures_lite::future::poll_once;
use thiserror::Error;
use tokio::task::JoinSet;
use zbus::fdo::RequestNameFlags;
use zbus::{Connection, Message, MessageStream, connection, message};

use events::Events;
use object::Service;
use pool::Pools;

/// The name on the bus.
const NAME: &str = "org.phppool";

/// Threads that wait for masters, which can hang.
const THREADS: usize = 32;

/// What the service is told on its command line.
#[derive(Args, Debug)]
pub struct Options {
    /// The bus, instead of the system's
    #[arg(long, value_name = "ADDRESS")]
    bus: Option<String>,
    /// The pools' files
    #[arg(long, value_name = "DIR", default_value = crate::generator::POOL_DIR)]
    pools: PathBuf,
    /// Where the masters have their control sockets, each in a folder of its pool's name
    #[arg(long, value_name = "DIR", default_value = crate::api::RUN)]
    run: PathBuf,
    /// Leave when nobody has asked and nothing has happened for so long
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    idle: u64,
}

/// Why the service cannot go on.
#[derive(Debug, Error)]
enum BusError {
    /// No bus.
    #[error("the bus cannot be reached: {0}")]
    Connect(#[source] zbus::Error),
    /// Somebody else has it, or we may not.
    #[error("the name {NAME} cannot be had: {0}")]
    Name(#[source] zbus::Error),
    /// It has gone.
    #[error("the connection to the bus has ended{0}")]
    Ended(String),
    /// The socket of events.
    #[error("the socket for events cannot be used: {0}")]
    Events(#[source] io::Error),
    /// The runtime.
    #[error("{0}")]
    Runtime(#[source] io::Error),
}

/// Serves until nobody has asked for a while; returns the exit status.
pub fn run(options: &Options) -> i32 {
    // Before anything else is opened.
    let inherited = events::inherited();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(THREADS)
        .build();
    let served = runtime
        .map_err(BusError::Runtime)
        .and_then(|runtime| runtime.block_on(serve(options, inherited)));
    match served {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("php-pool bus: {error}");
            1
        }
    }
}

/// What a task has done.
enum Done {
    Answered,
    /// The name is given back: nobody else's question will come.
    Released,
}

async fn serve(options: &Options, inherited: Option<std::os::fd::OwnedFd>) -> Result<(), BusError> {
    let mut events = Events::new(inherited).map_err(BusError::Events)?;
    let connection = connect(options.bus.as_deref()).await.map_err(BusError::Connect)?;
    let mut messages = MessageStream::from(&connection);
    // What is asked from the first moment on waits in `messages`.
    connection
        .request_name_with_flags(NAME, RequestNameFlags::DoNotQueue.into())
        .await
        .map_err(BusError::Name)?;
    let pools = Pools::new(&options.pools, &options.run);
    let service = Arc::new(Service::new(connection.clone(), pools));
    let mut tasks = JoinSet::new();
    let mut released = false;
    let answer = |message: Message| {
        let service = service.clone();
        async move {
            service.answer(&message).await;
            Done::Answered
        }
    };
    while !(released && tasks.is_empty()) {
        let idle = tokio::time::sleep(Duration::from_secs(options.idle));
        tokio::select! {
            message = messages.next() => match message {
                Some(Ok(message)) if is_call(&message) => drop(tasks.spawn(answer(message))),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(BusError::Ended(format!(": {error}"))),
                None => return Err(BusError::Ended(String::new())),
            },
            // What happens from now on waits in systemd's socket for the next of us.
            event = events.next(), if !released => service.tell(&event.map_err(BusError::Events)?).await,
            Some(done) = tasks.join_next() => if matches!(done, Ok(Done::Released)) {
                // Whoever asked before has been heard: the bus keeps the order.
                while let Some(Some(Ok(message))) = poll_once(messages.next()).await {
                    if is_call(&message) {
                        tasks.spawn(answer(message));
                    }
                }
                released = true;
            },
            () = idle, if tasks.is_empty() => {
                // systemd starts nobody into a service that is about to end; it waits, and starts it again.
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
                let connection = connection.clone();
                tasks.spawn(async move {
                    let _ = connection.release_name(NAME).await;
                    Done::Released
                });
            }
        }
    }
    Ok(())
}

async fn connect(address: Option<&str>) -> zbus::Result<Connection> {
    match address {
        Some(address) => connection::Builder::address(address)?,
        None => connection::Builder::system()?,
    }
    .build()
    .await
}

fn is_call(message: &Message) -> bool {
    message.message_type() == message::Type::MethodCall
}
