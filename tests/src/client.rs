//! A client that keeps its connections to the load balancer, as browsers do.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::http::{Request, Response};

/// A connection that was idle for longer is not used again: the load balancer may be about to close it, and a request lost
/// by that would be the client's own doing. Varnish keeps them for 5 s, nginx and HAProxy for longer.
const IDLE_LIMIT: Duration = Duration::from_secs(2);

/// Connections to one address.
#[derive(Debug)]
pub struct Client {
    target: SocketAddr,
    /// The one used last is at the end.
    idle: Mutex<Vec<(TcpStream, Instant)>>,
}

impl Client {
    /// Has no connections yet.
    pub fn new(target: SocketAddr) -> Self {
        Self { target, idle: Mutex::default() }
    }

    /// Sends a request on an idle connection, or a new one, and reads the whole answer.
    ///
    /// # Errors
    /// Also when the connection ends before the answer does.
    pub async fn exchange(&self, request: &Request<'_>) -> Result<Response> {
        let mut stream = match self.idle_one() {
            Some(stream) => stream,
            None => TcpStream::connect(self.target).await.context("connect")?,
        };
        stream.set_nodelay(true)?;
        stream.write_all(&request.encode_as("keep-alive")).await.context("send")?;
        let response = receive(&mut stream).await?;
        let last = response.header("Connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        if !last {
            self.lock().push((stream, Instant::now()));
        }
        Ok(response)
    }

    fn idle_one(&self) -> Option<TcpStream> {
        let mut idle = self.lock();
        idle.retain(|(_, since)| since.elapsed() < IDLE_LIMIT);
        idle.pop().map(|(stream, _)| stream)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(TcpStream, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads one answer, with a length or chunked.
pub async fn receive(stream: &mut TcpStream) -> Result<Response> {
    let mut bytes = Vec::with_capacity(1024);
    loop {
        if let Some(response) = Response::complete(&bytes)? {
            return Ok(response);
        }
        if stream.read_buf(&mut bytes).await.context("receive")? == 0 {
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
            bail!("cut after {} bytes: {shown:?}", bytes.len());
        }
    }
}
