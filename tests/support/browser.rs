//! As much of a browser as a wiki needs: cookies, forms, uploads.

use std::collections::BTreeMap;

use ureq::Agent;
use ureq::http::Request;

use super::fcgi::PATIENCE;
use super::web::urlencoded;

/// One visitor, with the cookies that the site has given.
pub struct Browser {
    agent: Agent,
    base: String,
    cookies: BTreeMap<String, String>,
}

/// The fields of a form, by name.
pub type Fields = Vec<(String, String)>;

/// An answer.
#[derive(Debug)]
pub struct Page {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Page {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value)
    }

    /// Fails unless the text of the page contains `wanted`.
    pub fn expect(&self, wanted: &str) -> &Self {
        let (status, text) = (self.status, self.text());
        assert!(
            text.contains(wanted),
            "status {status}, and nothing of '{wanted}' in\n{text}"
        );
        self
    }

    pub fn expect_status(&self, wanted: u16) -> &Self {
        assert_eq!(self.status, wanted, "{}", self.text());
        self
    }

    /// What the form with `id` would send if nothing were changed: its inputs and text areas.
    pub fn form(&self, id: &str) -> Fields {
        let text = self.text();
        let Some(begin) = text.find(&format!("id=\"{id}\"")) else {
            panic!("no form '{id}' in\n{text}")
        };
        let form = &text[begin..];
        let form = &form[..form.find("</form>").unwrap_or(form.len())];
        let mut fields = Vec::new();
        for tag in form.split('<') {
            let (input, area) = (tag.starts_with("input"), tag.starts_with("textarea"));
            let Some(name) = attribute(tag, "name").filter(|_| input || area) else {
                continue;
            };
            if matches!(attribute(tag, "type").as_deref(), Some("checkbox" | "radio")) && !tag.contains("checked") {
                continue;
            }
            let value = if area {
                unescape(tag.split_once('>').expect("a tag ends").1.trim_start_matches('\n'))
            } else {
                attribute(tag, "value").unwrap_or_default()
            };
            fields.push((name, value));
        }
        fields
    }
}

fn attribute(tag: &str, name: &str) -> Option<String> {
    let begin = tag.find(&format!(" {name}=\""))? + name.len() + 3;
    let value = &tag[begin..];
    Some(unescape(&value[..value.find('"')?]))
}

fn unescape(html: &str) -> String {
    html.replace("&quot;", "\"")
        .replace("&#039;", "'")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&")
}

/// Sets a field of a form.
pub fn set(fields: &mut Fields, name: &str, value: &str) {
    fields.retain(|(n, _)| n != name);
    fields.push((name.to_owned(), value.to_owned()));
}

impl Browser {
    /// A visitor of the site at `base`, as `http://127.0.0.1:8080`.
    pub fn new(base: String) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(PATIENCE * 2))
            .build();
        Self {
            agent: config.into(),
            base,
            cookies: BTreeMap::new(),
        }
    }

    pub fn get(&mut self, path: &str) -> Page {
        self.send("GET", path, &[], &[])
    }

    /// Sends a request, and follows no redirection.
    pub fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Page {
        let cookies: Vec<String> = self.cookies.iter().map(|(n, value)| format!("{n}={value}")).collect();
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !cookies.is_empty() {
            request = request.header("Cookie", cookies.join("; "));
        }
        let outcome = if method == "POST" {
            self.agent.run(request.body(body).expect("a proper request"))
        } else {
            self.agent.run(request.body(()).expect("a proper request"))
        };
        let mut response = outcome.unwrap_or_else(|e| panic!("{method} {path} had no proper answer: {e}"));
        let headers: Vec<(String, String)> = response
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        for (_, value) in headers.iter().filter(|(name, _)| name == "set-cookie") {
            let cookie = value.split(';').next().unwrap_or_default();
            if let Some((name, value)) = cookie.split_once('=') {
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
        let status = response.status().as_u16();
        let body = response
            .body_mut()
            .with_config()
            .limit(256 << 20)
            .read_to_vec()
            .unwrap_or_else(|e| panic!("the body of {method} {path} broke off: {e}"));
        Page { status, headers, body }
    }

    /// Submits a form, as `application/x-www-form-urlencoded`.
    pub fn post(&mut self, path: &str, fields: &[(String, String)]) -> Page {
        let kind = [("Content-Type", "application/x-www-form-urlencoded")];
        self.send("POST", path, &kind, urlencoded(fields).as_bytes())
    }

    /// Submits a form with a file, as `multipart/form-data`.
    pub fn upload(&mut self, path: &str, fields: &[(String, String)], field: &str, name: &str, content: &[u8]) -> Page {
        const BOUNDARY: &str = "-----------------------------the-boundary-of-this-form";
        let mut body = String::new();
        for (name, value) in fields {
            body += &format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
        }
        body += &format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{field}\"; filename=\"{name}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        let end = format!("\r\n--{BOUNDARY}--\r\n");
        let body = [body.as_bytes(), content, end.as_bytes()].concat();
        let kind = format!("multipart/form-data; boundary={BOUNDARY}");
        self.send("POST", path, &[("Content-Type", &kind)], &body)
    }
}
