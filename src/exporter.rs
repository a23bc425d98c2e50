//! `php-pool exporter`: the metrics of all pools over HTTP, for Prometheus and its like.
//!
//! A client of the masters' control sockets, that wakes no pool and holds none up: a master that does not answer in time is
//! `phpfpm_up 0`. It reads nothing that a request sends but its path and its Accept header.

#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;

use crate::api::{ApiError, FRESH, PoolStatus, pools_of, sockets};
use crate::master::take_inherited;
use crate::status::{Exposition, PoolMetrics, Resources};

/// Where php-fpm's exporters are scraped.
pub const LISTEN: &str = "127.0.0.1:9253";

/// How long a master may take, and a client for its request.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest that a client may keep its connection, whatever it does on it.
const LONGEST: Duration = Duration::from_secs(120);

/// Clients at once; the next ones wait in the socket's queue.
const CLIENTS: usize = 16;

/// Why it cannot serve.
#[derive(Debug, Error)]
pub enum ExporterError {
    /// The address is taken, or not ours.
    #[error("{0} cannot be listened on: {1}")]
    Listen(SocketAddr, #[source] io::Error),
    /// What systemd has passed on is no listening TCP socket, or another one.
    #[error("the socket from systemd cannot be used: {0}")]
    Inherited(#[source] io::Error),
    /// No event loop.
    #[error("the event loop cannot be made: {0}")]
    Loop(#[source] io::Error),
}

/// Whose metrics are served.
#[derive(Clone, Debug)]
pub enum Whose {
    /// All of systemd's pools.
    All,
    /// Those of these masters' control sockets.
    Of(Vec<PathBuf>),
}

/// The masters, and what they said last.
struct Masters {
    whose: Whose,
    said: Mutex<Option<(Instant, Vec<PoolMetrics>)>>,
}

/// Serves until it is ended. `listen` is for when systemd passes no socket on.
///
/// # Errors
/// When it cannot begin to.
pub fn serve(listen: SocketAddr, whose: Whose) -> Result<Infallible, ExporterError> {
    let inherited = inherited().map_err(ExporterError::Inherited)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // A master that hangs holds one of these up for as long as a scrape lasts.
        .max_blocking_threads(1024)
        .build()
        .map_err(ExporterError::Loop)?;
    runtime.block_on(async move {
        let listener = match inherited {
            Some(listener) => TcpListener::from_std(listener).map_err(ExporterError::Inherited)?,
            None => {
                let failed = |error| ExporterError::Listen(listen, error);
                let listener = TcpListener::bind(listen).await.map_err(failed)?;
                // Whoever gave port 0 wants to know.
                eprintln!("http://{}/metrics", listener.local_addr().map_err(failed)?);
                listener
            }
        };
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        let said = Mutex::default();
        accept(listener, Arc::new(Masters { whose, said })).await
    })
}

/// The socket that systemd holds for us.
fn inherited() -> io::Result<Option<std::net::TcpListener>> {
    let Some(fd) = sd_notify::listen_fds()?.next() else {
        return Ok(None);
    };
    let listener = take_inherited(fd).map(std::net::TcpListener::from);
    let listener = listener.ok_or_else(|| io::Error::other("it is not open"))?;
    listener.set_nonblocking(true)?;
    listener.local_addr()?;
    Ok(Some(listener))
}

async fn accept(listener: TcpListener, masters: Arc<Masters>) -> Result<Infallible, ExporterError> {
    let places = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let place = places.clone().acquire_owned().await.expect("it is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // No descriptors: the client waits until there are some.
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let masters = masters.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let masters = masters.clone();
                async move {
                    let accept = request.headers().get(ACCEPT);
                    Ok::<_, Infallible>(answer(request.method(), request.uri().path(), accept, &masters).await)
                }
            });
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .max_buf_size(16 << 10);
            let connection = http.serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(LONGEST, connection).await;
            drop(place);
        });
    }
}

async fn answer(method: &Method, path: &str, accept: Option<&HeaderValue>, masters: &Masters) -> Response<Full<Bytes>> {
    let reply = |status: StatusCode, kind: &'static str, text: String| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    };
    let plain = "text/plain; charset=utf-8";
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut response = reply(StatusCode::METHOD_NOT_ALLOWED, plain, "GET /metrics\n".to_owned());
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/metrics" => {
            let exposition = Exposition::of(accept.and_then(|accept| accept.to_str().ok()).unwrap_or_default());
            let text = exposition.of_pools(masters.ask().await);
            reply(StatusCode::OK, exposition.content_type(), text)
        }
        "/" => reply(
            StatusCode::OK,
            "text/html; charset=utf-8",
            "<!DOCTYPE html>\n<html lang=\"en\"><title>php-pool</title><p><a href=\"/metrics\">Metrics</a> of the pools of this machine</html>\n".to_owned(),
        ),
        _ => reply(StatusCode::NOT_FOUND, plain, "There is /metrics.\n".to_owned()),
    }
}

impl Masters {
    async fn ask(&self) -> Vec<PoolMetrics> {
        let mut said = self.said.lock().await;
        match &*said {
            Some((at, pools)) if at.elapsed() < FRESH => pools.clone(),
            _ => {
                let pools = gather(&self.whose).await;
                *said = Some((Instant::now(), pools.clone()));
                pools
            }
        }
    }
}

/// Asks all masters at once. Who has not answered in time is down, however many hang.
async fn gather(whose: &Whose) -> Vec<PoolMetrics> {
    let sockets = match whose {
        Whose::All => sockets(),
        Whose::Of(paths) => paths.iter().map(|path| (name_of(path), path.clone())).collect(),
    };
    let deadline = Instant::now() + PATIENCE;
    let asked: Vec<_> = sockets
        .into_iter()
        .map(|(name, path)| (name, tokio::task::spawn_blocking(move || ask(&path))))
        .collect();
    let mut pools = Vec::new();
    for (name, mut asked) in asked {
        match tokio::time::timeout_at(deadline, &mut asked).await {
            Ok(Ok(Ok(found))) => pools.extend(found),
            _ => {
                // If it has not begun. A thread that hangs is left to its own time-out.
                asked.abort();
                pools.push(PoolMetrics {
                    pool: name,
                    status: None,
                    resources: Resources::default(),
                });
            }
        }
    }
    pools
}

fn name_of(socket: &Path) -> String {
    socket.display().to_string()
}

/// The pools of one master.
fn ask(socket: &Path) -> Result<Vec<PoolMetrics>, ApiError> {
    let with_resources = |status: PoolStatus| PoolMetrics {
        pool: status.snapshot.pool.clone(),
        resources: status.measured.cgroup.as_deref().map(Resources::of).unwrap_or_default(),
        status: Some(status),
    };
    Ok(pools_of(socket, PATIENCE)?.into_iter().map(with_resources).collect())
}
