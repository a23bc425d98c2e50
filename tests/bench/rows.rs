//! What is measured.

use crate::support::server::Listen;

/// Which cores the server and the client run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cores {
    /// The server has one, the client another.
    Apart,
    /// Both share one: no request waits for a core to wake up.
    Shared,
    /// As the kernel likes.
    Free,
}

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub enum Body {
    None,
    /// This many bytes of a form, `application/x-www-form-urlencoded`.
    Form(usize),
    /// A file of this many bytes, `multipart/form-data`.
    Upload(usize),
}

#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub name: &'static str,
    pub script: &'static str,
    /// What must stand in the answer.
    pub answer: &'static str,
    pub body: Body,
    pub listen: Listen,
    pub keep: bool,
    /// php-fpm on a kept connection, too; where there are more connections than workers it would starve.
    pub keep_for_php_fpm: bool,
    pub workers: u32,
    pub in_flight: usize,
    pub cores: Cores,
    /// Whether every answer is as long as the first.
    pub constant: bool,
    /// About the bytes of an answer's body, for the transport's floor.
    pub answer_size: usize,
    /// Through a web server, by wrk, which keeps so many idle connections to the pool in each of its processes.
    pub web: Option<u32>,
    /// What is aimed at: the ratio of the rates, php-pool's to php-fpm's.
    pub target: f64,
}

const HELLO: Row = Row {
    name: "",
    script: "hello.php",
    answer: "Hello, world!",
    body: Body::None,
    listen: Listen::Unix,
    keep: false,
    keep_for_php_fpm: true,
    workers: 1,
    in_flight: 4,
    cores: Cores::Apart,
    constant: true,
    answer_size: 82,
    web: None,
    target: 1.0,
};

const WEB: Row = Row {
    cores: Cores::Free,
    workers: 4,
    web: Some(0),
    constant: false,
    ..HELLO
};

const TCP: Listen = Listen::Tcp("127.0.0.1");

pub const ROWS: &[Row] = &[
    Row {
        name: "hello: new, unix, 4 in flight",
        target: 4.0,
        ..HELLO
    },
    Row {
        name: "hello: new, tcp, 4 in flight",
        target: 4.0,
        listen: TCP,
        ..HELLO
    },
    Row {
        name: "hello: new, unix, client on the same core",
        in_flight: 1,
        cores: Cores::Shared,
        ..HELLO
    },
    Row {
        name: "hello: kept, unix, client on the same core",
        target: 1.3,
        keep: true,
        in_flight: 1,
        cores: Cores::Shared,
        ..HELLO
    },
    Row {
        name: "hello: kept, tcp, client on the same core",
        target: 1.3,
        listen: TCP,
        keep: true,
        in_flight: 1,
        cores: Cores::Shared,
        ..HELLO
    },
    Row {
        name: "hello: kept, unix, a connection for each of 2 workers",
        keep: true,
        workers: 2,
        in_flight: 2,
        cores: Cores::Free,
        ..HELLO
    },
    Row {
        name: "hello: new, unix, 2 workers, 8 in flight",
        workers: 2,
        in_flight: 8,
        cores: Cores::Free,
        ..HELLO
    },
    Row {
        name: "hello: new, unix, 32 workers, 32 in flight",
        workers: 32,
        in_flight: 32,
        cores: Cores::Free,
        ..HELLO
    },
    Row {
        name: "overload: hello, new, unix, 4 workers, 16 in flight",
        workers: 4,
        in_flight: 16,
        cores: Cores::Free,
        ..HELLO
    },
    Row {
        name: "overload: hello, 16 kept connections on 2 workers (php-fpm: new)",
        target: 0.9,
        keep: true,
        keep_for_php_fpm: false,
        workers: 2,
        in_flight: 16,
        cores: Cores::Free,
        ..HELLO
    },
    Row {
        name: "json: 20 KB, 5 includes, new, unix",
        target: 1.3,
        script: "json.php",
        answer_size: 20 << 10,
        answer: "\"section\":4",
        ..HELLO
    },
    Row {
        name: "output: 1 MB, new, unix",
        target: 1.2,
        script: "output.php",
        answer_size: 1 << 20,
        answer: "0123456789abcdef",
        ..HELLO
    },
    Row {
        name: "output: 1 MB, new, tcp",
        target: 1.2,
        script: "output.php",
        answer_size: 1 << 20,
        answer: "0123456789abcdef",
        listen: TCP,
        ..HELLO
    },
    Row {
        name: "post: 1 MB form, new, unix",
        target: 1.1,
        script: "post.php",
        answer: "fields: 10",
        body: Body::Form(1 << 20),
        ..HELLO
    },
    Row {
        name: "upload: 10 MB, new, unix",
        target: 1.2,
        script: "upload.php",
        answer: "size: 10485760",
        body: Body::Upload(10 << 20),
        ..HELLO
    },
    Row {
        name: "classes: 150 files from opcache, new, unix",
        target: 1.2,
        script: "classes.php",
        answer: "sum: 11175",
        ..HELLO
    },
    Row {
        name: "dokuwiki: start page, new, unix",
        target: 1.0,
        script: "doku.php",
        answer: "</html>",
        constant: false,
        ..HELLO
    },
    Row {
        name: "cpu: a bound script, new, unix",
        target: 0.98,
        script: "cpu.php",
        answer: "primes: 9592",
        in_flight: 1,
        ..HELLO
    },
    Row {
        name: "web: hello through nginx, new, 4 workers, 4 clients",
        target: 1.5,
        ..WEB
    },
    Row {
        name: "web: hello through nginx, kept, 4 workers, 4 clients",
        web: Some(2),
        target: 1.5,
        ..WEB
    },
    Row {
        name: "web: hello through nginx, 16 kept on 2 workers, 8 clients",
        web: Some(16),
        workers: 2,
        in_flight: 8,
        target: 1.5,
        ..WEB
    },
    Row {
        name: "web: json through nginx, new, 4 workers, 4 clients",
        script: "json.php",
        answer: "\"section\":4",
        ..WEB
    },
    Row {
        name: "web: dokuwiki through nginx, new, 4 workers, 4 clients",
        script: "doku.php",
        answer: "</html>",
        ..WEB
    },
];
