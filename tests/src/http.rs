//! As much HTTP/1.1 as the harness needs: one request a connection, the whole answer or an error.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// A request; `Connection: close` and `Content-Length` are added.
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

    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        let mut text = format!("{} {} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n", self.method, self.path);
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

    /// Sends the request to `address`, from the calling thread's network namespace.
    pub fn send(&self, address: SocketAddr, limit: Duration) -> Result<Response> {
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

    /// A header field.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}
