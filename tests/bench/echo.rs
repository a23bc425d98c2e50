//! The transport's floor: FastCGI without PHP. One read, one canned answer, close; or the next on the same connection.

use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;

use crate::support::fcgi::{self, END_REQUEST, Record};

/// Serves at `place`, a path or HOST:PORT, for ever: requests of `take` bytes with answers of `give`.
///
/// # Errors
/// When it cannot listen.
pub fn serve(place: &str, take: usize, give: usize, threads: usize) -> io::Result<()> {
    let mut answer = fcgi::stream(fcgi::STDOUT, 1, &vec![b'x'; give], 0xffff);
    // fcgi::stream ends with an empty record, which nobody sends here.
    answer.truncate(answer.len() - 8);
    answer.extend(Record::new(END_REQUEST, 1, vec![0; 8]).bytes());
    let answer: Arc<[u8]> = answer.into();
    if place.starts_with('/') {
        let listener = Arc::new(UnixListener::bind(place)?);
        run(
            threads,
            move || listener.accept().map(|(stream, _)| stream),
            take,
            answer,
        )
    } else {
        let listener = Arc::new(TcpListener::bind(place)?);
        let accept = move || {
            let (stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        run(threads, accept, take, answer)
    }
}

fn run<S: Read + Write>(
    threads: usize,
    accept: impl Fn() -> io::Result<S> + Clone + Send + 'static,
    take: usize,
    answer: Arc<[u8]>,
) -> io::Result<()> {
    let all: Vec<_> = (0..threads)
        .map(|_| {
            let (accept, answer) = (accept.clone(), answer.clone());
            thread::spawn(move || {
                let mut buffer = vec![0; 64 << 10];
                while let Ok(mut stream) = accept() {
                    // A client that goes away is nothing to a floor.
                    let _ = talk(&mut stream, &mut buffer, take, &answer);
                }
            })
        })
        .collect();
    for thread in all {
        thread.join().map_err(|_| io::Error::other("a thread panicked"))?;
    }
    Ok(())
}

fn talk(stream: &mut (impl Read + Write), buffer: &mut [u8], take: usize, answer: &[u8]) -> io::Result<()> {
    loop {
        let mut left = take;
        let mut keep = false;
        while left > 0 {
            let count = stream.read(buffer)?;
            if count == 0 {
                return Ok(());
            }
            if left == take {
                keep = buffer[10] & fcgi::KEEP_CONN != 0;
            }
            left -= count.min(left);
        }
        stream.write_all(answer)?;
        if !keep {
            return Ok(());
        }
    }
}
