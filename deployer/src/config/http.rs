//! Requests that are sent to workers: `warm`, `version`.

use std::time::Duration;

use super::{
    Request, VersionPlace, VersionRequest, Warm,
    check::UP_TO_AN_HOUR,
    raw::{Table, Value, quoted},
};

/// `warm = { requests, repeat, within }`
pub(super) fn warm(mut table: Table<'_>) -> Option<Warm> {
    let requests = table.or("requests", Vec::new(), |value| {
        let items = value.list("a list of requests, [\"GET /\"]")?;
        let requests: Vec<_> = items.iter().map(request).collect();
        requests.into_iter().collect()
    });
    let repeat = table.or("repeat", 1, |value| value.number(1..=1000));
    let within = table.or("within", Duration::from_secs(20), |value| value.duration(UP_TO_AN_HOUR));
    table.done();
    Some(Warm { requests: requests?, repeat: repeat?, within: within? })
}

/// `version = { request, header | json }`
pub(super) fn version(value: &Value<'_>) -> Option<VersionRequest> {
    let mut table = value.table()?;
    let request = table.need("request", "request = \"GET /version\"", request);
    let header = table.maybe("header", |value| header_name(value, value.text()?));
    let json = table.maybe("json", json);
    table.done();
    if let (Some(Some(_)), Some(Some(_))) = (&header, &json) {
        return table.refuse("has both header and json; write the one that holds the version");
    }
    let place = match (header?, json?) {
        (Some(name), _) => VersionPlace::Header(name),
        (None, Some(path)) => VersionPlace::Json(path),
        (None, None) => VersionPlace::Body,
    };
    let request = request?;
    if request.method == "HEAD" && !matches!(place, VersionPlace::Header(_)) {
        return table.refuse("reads the body, and the answer to HEAD has none; write GET, or header = \"X-Version\"");
    }
    Some(VersionRequest { request, place })
}

fn json(value: &Value<'_>) -> Option<String> {
    let text = value.text()?;
    if text.split('.').any(str::is_empty) {
        return value.refuse(format!("{} has an empty part; write names and dots, \"build.version\"", quoted(text)));
    }
    Some(text.to_owned())
}

/// `"GET /path"`, or a table.
pub(super) fn request(value: &Value<'_>) -> Option<Request> {
    if value.is_table() {
        return request_table(value.table()?);
    }
    if !value.is_text() {
        return value.wrong_type("\"GET /path\" or a table with method and path");
    }
    let text = value.text()?;
    let Some((method_text, path_text)) = text.split_once(' ') else {
        return value.refuse(format!("{} is no request; write a method and a path, \"GET /\"", quoted(text)));
    };
    let (method, path) = (method(value, method_text), path(value, path_text));
    Some(Request { method: method?, tls: None, path: path?, headers: Vec::new(), body: String::new(), status: None })
}

fn request_table(mut table: Table<'_>) -> Option<Request> {
    let method = table.or("method", "GET".to_owned(), |value| method(value, value.text()?));
    let path = table.need("path", "path = \"/\"", |value| path(value, value.text()?));
    let headers = table.or("headers", Vec::new(), headers);
    let body = table.or("body", String::new(), |value| value.text().map(str::to_owned));
    let status = table.maybe("status", |value| value.number(100..=599));
    table.done();
    let status = status?.and_then(|status| u16::try_from(status).ok());
    Some(Request { method: method?, tls: None, path: path?, headers: headers?, body: body?, status })
}

fn method(value: &Value<'_>, text: &str) -> Option<String> {
    if text == "CONNECT" {
        return value.refuse("CONNECT asks for a tunnel; write another method, GET");
    }
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_')) {
        return Some(text.to_owned());
    }
    let upper = text.to_ascii_uppercase();
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"].contains(&upper.as_str());
    let instead = if known { upper } else { "GET".to_owned() };
    value.refuse(format!("{} is no method, which has upper-case letters only; write {instead}", quoted(text)))
}

/// Path and query as they go over the wire.
fn path(value: &Value<'_>, text: &str) -> Option<String> {
    if !text.starts_with('/') {
        return value.refuse(format!("the path {} does not begin with /; write \"/\" or \"/path\"", quoted(text)));
    }
    // What the URI parser of the HTTP client, or every server, refuses.
    let wrong = |char: char| !char.is_ascii_graphic() || matches!(char, '"' | '<' | '>' | '`' | '#');
    let Some(char) = text.chars().find(|char| wrong(*char)) else {
        return Some(text.to_owned());
    };
    let mut bytes = [0; 4];
    let encoded: String = char.encode_utf8(&mut bytes).bytes().map(|byte| format!("%{byte:02X}")).collect();
    value.refuse(format!("the path {} contains {char:?}; write {encoded} for it", quoted(text)))
}

/// A table of names and values, in the order written.
fn headers(value: &Value<'_>) -> Option<Vec<(String, String)>> {
    let headers: Vec<_> = value.table()?.entries().iter().map(|(name, value)| header(name, value)).collect();
    headers.into_iter().collect()
}

fn header(name: &str, value: &Value<'_>) -> Option<(String, String)> {
    let (name, text) = (header_name(value, name), value.text());
    let (name, text) = (name?, text?);
    // They say how long the body is; a second opinion is how requests are smuggled.
    if ["content-length", "transfer-encoding"].contains(&name.to_ascii_lowercase().as_str()) {
        return value.refuse(format!("{name} is computed from the body; leave it out"));
    }
    let wrong = |char: char| !(char.is_ascii_graphic() || matches!(char, ' ' | '\t'));
    if let Some(char) = text.chars().find(|char| wrong(*char)) {
        return value.refuse(format!("the header's value contains {char:?}; write printable ASCII"));
    }
    if text.trim() != text {
        return value.refuse("the header's value begins or ends with a blank; leave it out");
    }
    Some((name, text.to_owned()))
}

fn header_name(value: &Value<'_>, name: &str) -> Option<String> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(token) {
        return value.refuse(format!("{} is no header name; write letters, digits and -, \"X-Version\"", quoted(name)));
    }
    Some(name.to_owned())
}
