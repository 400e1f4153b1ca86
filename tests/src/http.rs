//! As much HTTP/1.1 as the harness needs: the whole answer or an error.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::pace::patient;

/// A request; `Connection` and `Content-Length` are added.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// `GET`, `POST`, ...
    pub method: &'a str,
    /// Path and query.
    pub path: &'a str,
    /// More header fields.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body.
    pub body: &'a str,
}

impl<'a> Request<'a> {
    /// A plain GET.
    pub fn get(path: &'a str) -> Self {
        Self { method: "GET", path, headers: &[], body: "" }
    }

    /// The bytes to send, on a connection of its own.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_as("close")
    }

    /// The bytes to send; `connection` is `close`, `keep-alive` or `Upgrade`.
    pub fn encode_as(&self, connection: &str) -> Vec<u8> {
        let mut text = format!("{} {} HTTP/1.1\r\nHost: web\r\nConnection: {connection}\r\n", self.method, self.path);
        for (name, value) in self.headers {
            text.extend([name, ": ", value, "\r\n"]);
        }
        if self.method != "GET" || !self.body.is_empty() {
            text.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        }
        text.push_str("\r\n");
        text.push_str(self.body);
        text.into_bytes()
    }

    /// Sends the request to `address`, from the calling thread's network namespace. What takes longer than `limit`, or more
    /// on a slow machine, is an error.
    pub fn send(&self, address: SocketAddr, limit: Duration) -> Result<Response> {
        let limit = patient(limit);
        let mut stream =
            TcpStream::connect_timeout(&address, limit).with_context(|| format!("connect to {address}"))?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(&self.encode()).context("send")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).context("receive")?;
        Response::parse(&answer)
    }
}

/// A complete answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    head: String,
    /// The body.
    pub body: String,
}

impl Response {
    /// Takes an answer apart that was read up to the connection's end. One that was cut short is an error.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.is_empty() {
            bail!("connection closed without an answer");
        }
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n").context("answer cut in its head")?;
        let status = head.split(' ').nth(1).context("no status")?;
        let response =
            Self { status: status.parse().context("bad status")?, head: head.to_owned(), body: body.to_owned() };
        let length = response.header("Content-Length");
        let length: usize = length.context("no Content-Length")?.parse()?;
        if length != body.len() {
            bail!("answer cut: {} of {length} bytes", body.len());
        }
        Ok(response)
    }

    /// The answer at the beginning of what was received, if it is all there: with a length, or chunked.
    pub fn complete(bytes: &[u8]) -> Result<Option<Self>> {
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let status = head.split(' ').nth(1).context("no status")?.parse().context("bad status")?;
        let mut response = Self { status, head, body: String::new() };
        let rest = &bytes[end + 4..];
        let body = match (response.header("Transfer-Encoding"), response.header("Content-Length")) {
            (Some("chunked"), _) => chunks(rest)?,
            (None, Some(length)) => rest.get(..length.parse().context("Content-Length")?).map(<[u8]>::to_vec),
            (encoding, _) => bail!("an answer without a length, Transfer-Encoding {encoding:?}"),
        };
        Ok(body.map(|body| {
            response.body = String::from_utf8_lossy(&body).into_owned();
            response
        }))
    }

    /// A header field.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

/// A chunked body, if it is all there.
fn chunks(mut rest: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    loop {
        let Some(end) = rest.windows(2).position(|window| window == b"\r\n") else { return Ok(None) };
        let line = String::from_utf8_lossy(&rest[..end]).into_owned();
        let length = usize::from_str_radix(line.trim(), 16).with_context(|| format!("chunk of {line:?} bytes"))?;
        let Some(chunk) = rest.get(end + 2..end + 2 + length + 2) else { return Ok(None) };
        if length == 0 {
            return Ok(Some(body));
        }
        body.extend(&chunk[..length]);
        rest = &rest[end + 2 + length + 2..];
    }
}
