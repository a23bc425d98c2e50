//! What a status or ping request asks for, and the reply.

use super::Snapshot;
use super::browser;
use super::render::{self, add};
use crate::log::Clock;

const EXPIRES: (&str, &str) = ("Expires", "Thu, 01 Jan 1970 00:00:00 GMT");
const CACHE_CONTROL: (&str, &str) = ("Cache-Control", "no-cache, no-store, must-revalidate, max-age=0");

/// A rendering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `name: value` lines.
    Text,
    /// php-fpm's HTML, which programs read.
    Html,
    /// HTML for a person, who sends `Accept: text/html`.
    Browser,
    /// XML
    Xml,
    /// JSON
    Json,
    /// php-fpm's OpenMetrics text, to the letter. Not valid OpenMetrics; see [`super::metrics`] for that.
    Openmetrics,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// The rendering.
    pub format: Format,
    /// With the workers.
    pub full: bool,
}

impl View {
    /// From a query (`full&json`) and the Accept header. A key counts where it stands between `&` as a whole, whatever its
    /// value (php-fpm takes every prefix of it); of several formats, the first of html, xml, json, openmetrics.
    pub fn of(query: &[u8], accept: &[u8]) -> Self {
        let has = |wanted: &str| {
            query.split(|b| *b == b'&').any(|pair| {
                let key = pair.split(|b| *b == b'=').next().unwrap_or_default();
                key == wanted.as_bytes()
            })
        };
        let person = || accept.windows(9).any(|w| w.eq_ignore_ascii_case(b"text/html"));
        let format = match () {
            () if has("html") && person() => Format::Browser,
            () if has("html") => Format::Html,
            () if has("xml") => Format::Xml,
            () if has("json") => Format::Json,
            () if has("openmetrics") => Format::Openmetrics,
            () => Format::Text,
        };
        Self {
            format,
            full: has("full"),
        }
    }
}

/// An answer; its HTTP status is 200 but for [`unavailable`]'s 500.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// In php-fpm's order, as they are given to PHP, which adds a charset to the type and, where there is none, the type.
    pub headers: Vec<(&'static str, &'static str)>,
    /// Empty for HEAD.
    pub body: String,
}

impl Reply {
    /// The bytes of FastCGI's STDOUT, where no PHP sends it: with the headers that PHP would add. `php` is the version that
    /// X-Powered-By names (`expose_php`).
    pub fn cgi(&self, php: Option<&str>) -> Vec<u8> {
        let mut out = String::with_capacity(self.body.len() + 256);
        if let Some(version) = php {
            add(&mut out, format_args!("X-Powered-By: PHP/{version}\r\n"));
        }
        for (name, value) in &self.headers {
            let (name, charset) = match value.starts_with("text/") {
                true => ("Content-type", ";charset=UTF-8"),
                false => (*name, ""),
            };
            add(&mut out, format_args!("{name}: {value}{charset}\r\n"));
        }
        if !self.headers.iter().any(|(name, _)| *name == "Content-Type") {
            out += "Content-type: text/html; charset=UTF-8\r\n";
        }
        out += "\r\n";
        out += &self.body;
        out.into_bytes()
    }
}

/// The answer to a ping: `ping.response`.
pub fn pong(response: &str, head: bool) -> Reply {
    Reply {
        headers: vec![("Content-Type", "text/plain"), EXPIRES, CACHE_CONTROL],
        body: if head { String::new() } else { response.to_owned() },
    }
}

/// The answer to a status request when there is no snapshot; its HTTP status is 500.
pub fn unavailable() -> Reply {
    Reply {
        headers: vec![("Content-Type", "text/plain"), EXPIRES, CACHE_CONTROL],
        body: "Internal error. Please review log file for errors.".to_owned(),
    }
}

/// Answers status requests.
#[derive(Clone, Debug)]
pub struct StatusPage {
    clock: Clock,
}

impl Default for StatusPage {
    fn default() -> Self {
        Self::new(Clock::new("%d/%b/%Y:%H:%M:%S %z"))
    }
}

impl StatusPage {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock }
    }

    /// The answer. Whatever a client sent is escaped in it, as the format wants it.
    pub fn reply(&mut self, snapshot: &Snapshot, view: View, head: bool) -> Reply {
        let mut headers = vec![EXPIRES, CACHE_CONTROL];
        // php-fpm leaves before it has chosen a type for HEAD, which makes it PHP's default.
        let mut body = String::new();
        if !head {
            let kind;
            (kind, body) = self.render(snapshot, view);
            headers.push(("Content-Type", kind));
        }
        Reply { headers, body }
    }

    fn render(&mut self, snapshot: &Snapshot, View { format, full }: View) -> (&'static str, String) {
        let clock = &mut self.clock;
        match format {
            Format::Text => ("text/plain", render::text(snapshot, full, clock)),
            Format::Html => ("text/html", render::html(snapshot, full, clock)),
            Format::Browser => ("text/html", browser::page(snapshot, full, clock)),
            Format::Xml => ("text/xml", render::xml(snapshot, full)),
            Format::Json => ("application/json", render::json(snapshot, full)),
            Format::Openmetrics => (
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                render::openmetrics(snapshot),
            ),
        }
    }
}
